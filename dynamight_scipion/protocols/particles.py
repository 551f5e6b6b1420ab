"""Particles with their motions, as outputs of the protocols that estimate or infer them."""

import numpy as np
from pwem.objects import SetOfParticlesFlex

from dynamight_scipion import convert
from dynamight_scipion.objects import FLEX_PROGRAM

from .protocol_from_model import setFlexInfo

# What becomes the zFlex of the particles: principal motions, or latents under the decoder of half-set 1 or 2.
MOTIONS = 0


def createParticles(path, particles, model, zFlexFrom=MOTIONS):
    """Return a new set of the input particles with their motions.

    Parameters
    ----------
    path
        folder of the protocol.
    particles
        SetOfParticles that was the engine's input.
    model
        DynamightModel whose run has results for these particles, analysed.
    zFlexFrom
        what their zFlex is: `MOTIONS`, or the number of the half-set whose latents it is.
    """
    output = SetOfParticlesFlex.create(path, progName=FLEX_PROGRAM)
    output.copyInfo(particles)
    output.setHasCTF(particles.hasCTF())
    output.setAlignmentProj()
    if particles.hasCoordinates():
        output.setCoordinates(particles._coordsPointer)
    setFlexInfo(output, model)
    columns = convert.readMotions(model.getParticlesStar())
    embedding, table = (
        np.loadtxt(model.getRunPath("analysis", name), delimiter=",", skiprows=1, ndmin=2)
        for name in ("embedding.csv", "latents.csv")
    )
    latents = np.split(table, 2, axis=1)
    # Programs that decode zFlex must know what it is.
    space = "motions" if zFlexFrom == MOTIONS else f"latents of half-set {zFlexFrom}"
    output.getFlexInfo().setAttr("space", space)
    coordinates = None if zFlexFrom == MOTIONS else latents[zFlexFrom - 1]
    convert.fillParticles(output, particles, columns, embedding, latents, coordinates)
    return output
