"""Arguments with which Hax's viewer of conformational spaces shows our coordinates and decodes them to maps."""

import os
import shlex

import numpy as np

from dynamight_scipion import Plugin

INTERFACE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "program_interface.py")
# The viewer is three-dimensional.
SHOWN_MOTIONS = 3


def getAnnotateSpaceArguments(particles, folder):
    """Return the arguments with which Hax's annotate_space shows and decodes the motion coordinates of particles.

    Hax starts our interface in its own environment, and the interface starts the engine in ours.

    Parameters
    ----------
    particles
        SetOfParticlesFlex of this plugin, with three principal motions or more.
    folder
        for the file of the first three coordinates (Å rms).
    """
    coordinates = os.path.abspath(os.path.join(folder, "coordinates.txt"))
    np.savetxt(coordinates, [particle.getZFlex()[:SHOWN_MOTIONS] for particle in particles.iterItems()])
    run = os.path.abspath(particles.getFlexInfo().getAttr("modelPath"))
    engine = Plugin.getProgram(f"states {shlex.quote(run)} --listen")
    words = ["--z_space_reduced", coordinates, "--server_functions_path", INTERFACE, "--engine", engine]
    return shlex.join(words)
