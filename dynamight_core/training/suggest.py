"""Inputs of a training as images and files suggest them."""

import re
from dataclasses import replace
from pathlib import Path

from dynamight_core.errors import InputError
from dynamight_core.options import InputOptions, TrainOptions
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.inputs import read_input_particles
from dynamight_core.particles.premultiplication import MULTIPLIED, NOT_MULTIPLIED, power_at_ctf_zeros
from dynamight_core.particles.preprocess import Preprocessing
from dynamight_core.training.comparison import comparison_box, correlation_with_map
from dynamight_core.training.read import read_volume

# Names of half-maps that RELION, cryoSPARC and this program write.
_HALVES = re.compile(r"half(_map)?_?([12AB])(?![0-9A-Za-z])", re.IGNORECASE)
# Standard errors of a correlation that is no chance.
_CERTAIN = 6.0


def suggest_inputs(inputs: InputOptions, options: TrainOptions) -> InputOptions:
    """Return inputs with the half-maps beside the map, the contrast and the premultiplication that the images show.

    What cannot be told is left as it is.
    """
    if inputs.map and not inputs.half_maps:
        inputs = replace(inputs, half_maps=find_half_maps(Path(inputs.map)))
    try:
        reader = ImageReader(read_input_particles(inputs))
        left = power_at_ctf_zeros(reader, options.seed)
        declared = reader.particles.premultiplied
        if left is not None and (left > NOT_MULTIPLIED if declared else left < MULTIPLIED):
            inputs = replace(inputs, premultiplied=not declared)
            reader.particles.premultiplied = not declared
        if inputs.map:
            prepare = Preprocessing(
                comparison_box(reader.particles.box), inputs.particle_diameter, inputs.invert_contrast
            )
            volume = read_volume("map", inputs.map, reader.particles)
            if correlation_with_map(reader, prepare, volume, options.seed) < -_CERTAIN:
                inputs = replace(inputs, invert_contrast=not inputs.invert_contrast)
    except InputError:
        # The check says so.
        return inputs
    return inputs


def find_half_maps(path: Path) -> list[str] | None:
    """Return the only pair of half-maps in the folder of a map, or None."""
    pairs: dict[str, dict[str, Path]] = {}
    for each in sorted(path.parent.glob("*.mrc")):
        found = _HALVES.search(each.name)
        if found and each.name != path.name:
            pairs.setdefault(_HALVES.sub("half", each.name), {})[found[2].upper()] = each
    whole = [pair for pair in pairs.values() if sorted(pair) in (["1", "2"], ["A", "B"])]
    return [str(whole[0][key]) for key in sorted(whole[0])] if len(whole) == 1 else None
