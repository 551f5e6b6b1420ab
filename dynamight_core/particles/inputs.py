"""The particles of a run, as its options say."""

from dynamight_core.options import InputOptions
from dynamight_core.particles.metadata import Particles, read_particles
from dynamight_core.particles.symmetry import expand
from dynamight_core.particles.tilt_series import TiltOptions


def read_input_particles(inputs: InputOptions) -> Particles:
    """Return the particles of a run: on the grid of its map, and expanded by its symmetry.

    Raises
    ------
    InputError
        if they cannot be used.
    """
    tilts = TiltOptions(inputs.tomograms, inputs.max_tilts, inputs.max_exposure, inputs.dose_weighting)
    particles = read_particles(inputs.star, inputs.project, inputs.passthrough, inputs.map, tilts)
    if inputs.premultiplied is not None:
        particles.premultiplied = inputs.premultiplied
    return particles if inputs.symmetry is None else expand(particles, inputs.symmetry)
