"""What Hax's viewer of conformational spaces needs to show our latents and to turn them into maps."""

import os
import shlex

import numpy as np

from dynamight_scipion import Plugin

INTERFACE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "program_interface.py")
# The viewer draws points in space.
SHOWN_MOTIONS = 3


def getAnnotateSpaceArguments(particles, folder):
    """Return the arguments with which Hax's annotate_space shows and decodes the motion coordinates of particles.

    Hax starts our interface in its own environment; the engine runs in ours.

    Parameters
    ----------
    particles
        SetOfParticlesFlex of this plugin, with three principal motions or more.
    folder
        where a file with their places is written: the first three coordinates, Å rms.
    """
    places = os.path.abspath(os.path.join(folder, "places.txt"))
    np.savetxt(places, [particle.getZFlex()[:SHOWN_MOTIONS] for particle in particles.iterItems()])
    run = os.path.abspath(particles.getFlexInfo().getAttr("modelPath"))
    engine = Plugin.getProgram(f"states {shlex.quote(run)} --listen")
    words = ["--z_space_reduced", places, "--server_functions_path", INTERFACE, "--engine", engine]
    return shlex.join(words)
