"""What Hax's viewer of conformational spaces needs to turn our latents into maps."""

import os
import shlex

from dynamight_scipion import Plugin

INTERFACE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "program_interface.py")


def getAnnotateSpaceArguments(particles):
    """Return the arguments with which Hax's annotate_space decodes the motion coordinates of particles.

    Hax starts our interface in its own environment; the engine runs in ours.

    Parameters
    ----------
    particles
        SetOfParticlesFlex of this plugin.
    """
    run = os.path.abspath(particles.getFlexInfo().getAttr("modelPath"))
    engine = Plugin.getProgram(f"states {shlex.quote(run)} --listen")
    return f"--server_functions_path {shlex.quote(INTERFACE)} --engine {shlex.quote(engine)}"
