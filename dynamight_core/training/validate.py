"""Checks of the input of a training, before hours are spent."""

from dataclasses import replace

import numpy as np
import torch

from dynamight_core.errors import InputError, option_name
from dynamight_core.imaging.geometry import mask_points
from dynamight_core.model.bodies import RigidBodies, memberships
from dynamight_core.model.half import HalfModel
from dynamight_core.model.initialise import MolecularRegion
from dynamight_core.options import InputOptions, TrainOptions
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.metadata import Particles
from dynamight_core.particles.premultiplication import MULTIPLIED, NOT_MULTIPLIED, power_at_ctf_zeros
from dynamight_core.registry import DECODER_OF_INPUT, DECODERS, LOSS_TERMS

# Relative difference of lengths due to rounding in headers.
SAME_SIZE = 0.005
# Box of the initial map with voxels of a quarter of the initial resolution.
_MIN_START_BOX = 16
# Images in a half-set, and held-out images in a half-set.
_MIN_IN_HALF, _MIN_HELD_OUT = 50, 5
# Fraction of the molecule in a body, and fraction of the contents of a body's mask that belong to it.
_MIN_BODY, _MIN_OWN = 0.01, 0.6
# Values of a mask beyond 0 and 1 that resampling may leave, and how much darker than bright an inverted map is.
_RINGING, _DARKER = 0.1, 1.5


def complete_options(inputs: InputOptions, options: TrainOptions) -> TrainOptions:
    """Return the options with the decoder that the inputs ask for.

    Raises
    ------
    InputError
        if the two contradict each other, or name a decoder or loss term that is not installed.
    """
    for name in options.added_losses():
        LOSS_TERMS.check(name)
    for option, decoder in DECODER_OF_INPUT.items():
        if getattr(inputs, option):
            if options.decoder not in (decoder, TrainOptions.decoder):
                raise InputError(f"{option_name(option)} is a decoder of its own; leave --decoder out")
            options = replace(options, decoder=decoder)
    DECODERS.load(options.decoder).check(inputs, options)
    return options


def check_model_box(model: HalfModel, half: int, particles: Particles) -> None:
    """Refuse particles whose box has another size (A) than that of the training of a half-set's model."""
    learned, extent = model.box * model.pixel_size, particles.box * particles.pixel_size
    if abs(learned / extent - 1) > SAME_SIZE:
        raise InputError(
            f"half-set {half} was trained in a box of {learned:.1f} A, but the particles in {particles.star_path} "
            f"have a box of {extent:.1f} A ({particles.box} pixels of {particles.pixel_size:.4g} A); use particles of "
            "the same box"
        )


def check_half_sets(particles: Particles, halves: torch.Tensor) -> None:
    """Refuse (n,) `halves` with too few images in one half-set."""
    noun = "images" if particles.series is None else "particles"
    for half, n in enumerate(count_groups(particles.copies, halves > 0, halves), 1):
        if n < _MIN_IN_HALF:
            raise InputError(
                f"{particles.star_path} has {n} {noun} with rlnRandomSubset {half}, too few to learn motion from; use "
                f"at least {_MIN_IN_HALF} in each half-set, or remove the column for a random split"
            )


def check_poses(particles: Particles, options: TrainOptions) -> None:
    """Refuse to refine poses that images of a particle have in common."""
    if options.refine_poses and particles.series is not None:
        raise InputError(
            "--refine-poses is for particles of one image; omit it, and refine poses of tilt series in RELION or M"
        )


def check_held_out(
    relatives: torch.Tensor, halves: torch.Tensor, validation: torch.Tensor, options: TrainOptions
) -> None:
    """Refuse an (n,) mask of validation particles that are too few for a verdict; relatives count as one."""
    fewest = min(count_groups(relatives, validation, halves))
    if fewest < _MIN_HELD_OUT:
        raise InputError(
            f"--validation-fraction {options.validation_fraction:g} holds out {fewest} images of a half-set, too few "
            f"for a verdict; increase it to hold out at least {_MIN_HELD_OUT} (relatives count as one)"
        )


def count_groups(groups: torch.Tensor, chosen: torch.Tensor, halves: torch.Tensor) -> list[int]:
    """Return the number of groups, by their (n,) numbers, in the chosen rows of each half-set."""
    return [len(groups[chosen & (halves == half)].unique()) for half in (1, 2)]


def check_half_maps(paths: list[str], volumes: list[torch.Tensor]) -> None:
    """Refuse half-maps that are not two different maps."""
    if len(volumes) != 2:
        raise InputError(f"--half-maps has {len(volumes)} files; use the two half-maps of the consensus")
    if torch.equal(volumes[0], volumes[1]):
        raise InputError(f"--half-maps {' and '.join(paths)} are the same map; use both half-maps of the consensus")


def check_initial_resolution(particles: Particles, options: TrainOptions) -> None:
    """Refuse a filter that removes the initial map."""
    coarsest = particles.box * particles.pixel_size * 4 / _MIN_START_BOX
    if options.initial_resolution > coarsest:
        raise InputError(
            f"--initial-resolution is {options.initial_resolution:g} A, too coarse for a box of "
            f"{particles.box * particles.pixel_size:g} A; use at most {coarsest:g}"
        )


def check_mask_range(name: str, path: str, mask: torch.Tensor) -> None:
    """Refuse a mask with values outside 0 to 1, but for what resampling adds."""
    if mask.min() < -_RINGING or mask.max() > 1 + _RINGING:
        raise InputError(f"{name} {path} has values from {mask.min():.4g} to {mask.max():.4g}; use 0 to 1")


def check_mask(path: str, mask: torch.Tensor, region: MolecularRegion) -> None:
    """Refuse a mask of the flexible region that misses the molecule."""
    covered = float(mask[torch.from_numpy(region.mask)].mean())
    if covered < _MIN_BODY:
        raise InputError(
            f"mask {path} covers {100 * covered:.2g} % of the molecule; use a mask in the frame of the consensus map "
            "that holds the part which moves"
        )


def check_contrast(path: str, volume: torch.Tensor) -> None:
    """Refuse a map whose molecule is dark."""
    low, high = float(volume.min()), float(volume.max())
    if -low > _DARKER * high:
        raise InputError(
            f"map {path} has values from {low:.4g} to {high:.4g}, as a map of inverted contrast has; multiply it by -1"
        )


def check_body_mask(path: str, mask: torch.Tensor, region: MolecularRegion) -> None:
    """Refuse the mask of a body that is empty or misses the molecule."""
    check_mask_range("body mask", path, mask)
    inside = mask.numpy() > 0.5
    if not inside.any():
        raise InputError(f"body mask {path} is empty (its largest value is {mask.max():.2g}); set it to 1 inside")
    if (inside & region.mask).sum() < _MIN_BODY * region.mask.sum():
        raise InputError(
            f"body mask {path} misses the molecule (it holds less than {100 * _MIN_BODY:g} % of it); use a mask in the "
            "frame of the consensus map"
        )


def check_bodies(
    paths: list[str], masks: list[np.ndarray], bodies: RigidBodies, particles: Particles, region: MolecularRegion
) -> None:
    """Refuse masks of bodies if one lies mostly inside another."""
    extent = particles.box * particles.pixel_size
    for body, path in enumerate(paths):
        inside = (masks[body] > 0.5) & region.mask
        points = torch.from_numpy(mask_points(inside, particles.pixel_size)).float()
        fractions = memberships(bodies.depths, bodies.largest, points, extent).mean(0)
        if fractions[body] < _MIN_OWN:
            fractions[body] = 0
            raise InputError(
                f"body masks {path} and {paths[int(fractions.argmax())]} overlap in most of the former; use masks of "
                "different parts"
            )


def check_premultiplied(reader: ImageReader, given: bool | None, seed: int) -> list[str]:
    """Compare the images with their declared premultiplication; warn if the user declared it, or else refuse."""
    left, particles = power_at_ctf_zeros(reader, seed), reader.particles
    declared = particles.premultiplied
    if left is None or (left < NOT_MULTIPLIED if declared else left > MULTIPLIED):
        return []
    now, right = ("--premultiplied", "--no-premultiplied") if declared else ("--no-premultiplied", "--premultiplied")
    looks = "do not appear" if declared else "appear"
    power = f"{100 * max(left, 0):.0f} % of their power is left at its zeros"
    found = f"the images {looks} to be premultiplied by the CTF ({power})"
    if given is not None:
        return [f"{found}, against {now}"]
    raise InputError(
        f"{found}, but {particles.star_path} says otherwise (rlnCtfDataAreCtfPremultiplied); set {right}, or {now} if "
        "it is right"
    )
