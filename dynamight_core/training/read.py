"""From files to a data set that is ready for training."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from dynamight_core.errors import InputError
from dynamight_core.files import read_map
from dynamight_core.model.bodies import RigidBodies
from dynamight_core.model.initialise import MolecularRegion, find_molecule
from dynamight_core.options import InputOptions, TrainOptions
from dynamight_core.options.presets import LABELS
from dynamight_core.particles.halves import assign_halves, choose_validation, torn
from dynamight_core.particles.inputs import read_input_particles
from dynamight_core.particles.metadata import Particles, check_enough
from dynamight_core.particles.plausible import check_plausible
from dynamight_core.particles.preprocess import Preprocessing
from dynamight_core.particles.relatives import default_distance, find_relatives
from dynamight_core.particles.symmetry import check_symmetry
from dynamight_core.reporter import Reporter
from dynamight_core.training import validate
from dynamight_core.training.atomic import AtomicModel, read_atomic_model

# Working pixels per mean distance between Gaussians, which cannot explain finer frequencies.
_PIXELS_PER_SPACING = 0.6


@dataclass
class Prepared:
    """A particle set that is ready for training.

    Parameters
    ----------
    inputs, options
        of the training, completed by the inputs: decoder of bodies, number of Gaussians of an atomic model.
    particles
        metadata.
    relatives
        (n,) numbers of groups of particles that show the same.
    halves
        (n,) 1 or 2.
    validation
        (n,) bool, particles that train no decoder.
    volumes
        initial map of each half-set, [z, y, x]; the same twice without half-maps.
    region
        of the molecule, on the grid of the maps.
    motion_mask
        volume or None.
    atomic
        the atomic model, or None.
    bodies
        or None.
    working_box
        pixels.
    notes, warnings
        sentences for the user.
    """

    inputs: InputOptions
    options: TrainOptions
    particles: Particles
    relatives: torch.Tensor
    halves: torch.Tensor
    validation: torch.Tensor
    volumes: tuple[torch.Tensor, torch.Tensor]
    region: MolecularRegion
    motion_mask: torch.Tensor | None
    atomic: AtomicModel | None
    bodies: RigidBodies | None
    working_box: int
    notes: list[str]
    warnings: list[str]

    @property
    def working_pixel_size(self) -> float:
        """Pixel size of the Fourier-cropped images, A."""
        return self.particles.pixel_size * self.particles.box / self.working_box

    def preprocessing(self) -> Preprocessing:
        """Return the preprocessing of the run's images at the working box."""
        inputs = self.inputs
        return Preprocessing(self.working_box, inputs.particle_diameter, inputs.invert_contrast, inputs.normalise)

    def report(self, reporter: Reporter) -> None:
        """Report preset, notes, warnings and the working box."""
        if self.options.preset != "default":
            reporter.say(f"Preset: {LABELS[self.options.preset]}; options that you set override it.")
        for line in self.notes:
            reporter.note(line)
        for line in self.warnings:
            reporter.warn(line)
        reporter.say(
            f"Images are Fourier-cropped to {self.working_box} pixels of {self.working_pixel_size:.3g} A for training."
        )


def open_particles(inputs: InputOptions, seed: int) -> tuple[Particles, torch.Tensor, torch.Tensor, bool]:
    """Read the particles and their half-sets.

    Returns
    -------
    tuple
        particles, (n,) groups of relatives, (n,) halves, and whether the half-sets were assigned at random.
    """
    if inputs.project is not None and not Path(inputs.project).is_dir():
        raise InputError(
            f"--project is {inputs.project}, not a folder; use the folder that image paths are relative to"
        )
    particles = read_input_particles(inputs)
    check_enough(particles)
    check_plausible(particles)
    distance = inputs.relative_distance
    if distance is None:
        distance = default_distance(particles, inputs.particle_diameter)
    relatives = find_relatives(particles, distance)
    halves, random = assign_halves(particles, relatives, seed)
    validate.check_half_sets(particles, halves)
    return particles, relatives, halves, random


def hold_out(
    particles: Particles, relatives: torch.Tensor, halves: torch.Tensor, options: TrainOptions
) -> torch.Tensor:
    """Return the (n,) mask of the validation particles; relatives are held out together.

    Raises
    ------
    InputError
        if a half-set has too few of them for a verdict.
    """
    validation = choose_validation(halves, relatives, options.validation_fraction, options.seed)
    validate.check_held_out(relatives, halves, validation, options)
    return validation


def read_inputs(inputs: InputOptions, options: TrainOptions) -> Prepared:
    """Read and check particles, maps, masks and atomic model.

    Raises
    ------
    InputError
        if they cannot be used.
    """
    options = validate.complete_options(inputs, options)
    particles, relatives, halves, random = open_particles(inputs, options.seed)
    notes, warnings = [], list(_torn_relatives(halves, relatives))
    if random:
        notes.append("the particles have no half-sets; they are assigned at random (rlnRandomSubset in particles.star)")
    validation = hold_out(particles, relatives, halves, options)
    consensus = read_volume("map", inputs.map, particles)
    if inputs.symmetry is not None:
        check_symmetry(inputs.map, consensus, inputs.symmetry)
        notes += _on_symmetry(inputs)
    validate.check_contrast(inputs.map, consensus)
    if inputs.half_maps:
        volumes = [read_volume("half-map", path, particles) for path in inputs.half_maps]
        validate.check_half_maps(inputs.half_maps, volumes)
    else:
        volumes = [consensus, consensus]
        notes.append(
            f"both half-sets are initialised from one map, {_filtered(options.initial_resolution)}; set --half-maps to "
            "keep them independent"
        )
    validate.check_initial_resolution(particles, options)
    mask = None
    if inputs.mask:
        mask = read_volume("mask", inputs.mask, particles)
        validate.check_mask_range("mask", inputs.mask, mask)
        mask = mask.clamp(0, 1)
    region = _find_molecule(inputs, options, particles, consensus)
    atomic = read_atomic_model(inputs, options, particles, consensus, region)
    if atomic is not None:
        options = replace(options, n_gaussians=len(atomic.coarse))
        notes += atomic.sentences()
    bodies = read_bodies(inputs.bodies, particles, region) if inputs.bodies else None
    warnings += [*region.warnings, *validate.check_premultiplied(particles, inputs.premultiplied, options.seed)]
    box = _working_box(inputs, options, particles, region)
    pair = volumes[0], volumes[1]
    return Prepared(
        inputs,
        options,
        particles,
        relatives,
        halves,
        validation,
        pair,
        region,
        mask,
        atomic,
        bodies,
        box,
        notes,
        warnings,
    )


def _on_symmetry(inputs: InputOptions) -> Iterator[str]:
    """Yield notes on what each image now stands for."""
    yield (
        f"each image is {inputs.symmetry}-expanded: its copies (dynCopy) stay in one half-set, and each has the motion "
        "of the subunit that lies where the first one does"
    )
    if inputs.mask is None and inputs.bodies is None:
        yield (
            "motion of all subunits is learned at once, which needs more latents; set --mask to one subunit of the map "
            "to learn the motion of one"
        )


def _torn_relatives(halves: torch.Tensor, relatives: torch.Tensor) -> Iterator[str]:
    """Yield a warning if half-sets that were given have relatives in both of them."""
    number = int(torn(halves, relatives).sum())
    if number:
        yield (
            f"{number} particles have relatives (the same original image, helical tube, tilt series or place) in the "
            "other half-set, so that the FSC may show more than there is; keep such particles in one half-set"
        )


def _filtered(resolution: float) -> str:
    return f"low-pass filtered at {resolution:g} A" if resolution else "without a low-pass filter"


def read_volume(name: str, path: str, particles: Particles, constant: bool = False) -> torch.Tensor:
    """Return a [z, y, x] map on the grid of the particles; `name` and `constant` are those of `read_map`."""
    volume, pixel_size = read_map(path, name, constant)
    if volume.shape[0] != particles.box:
        raise InputError(
            f"{name} {path} has a box of {volume.shape[0]} voxels, but the particles have {particles.box} pixels; "
            "resample it to the particles' box"
        )
    if abs(pixel_size / particles.pixel_size - 1) > validate.SAME_SIZE:
        raise InputError(
            f"{name} {path} has a pixel size of {pixel_size:.4g} A, but the particles have "
            f"{particles.pixel_size:.4g} A; resample it or correct its header"
        )
    return torch.from_numpy(volume)


def read_bodies(paths: list[str], particles: Particles, region: MolecularRegion) -> RigidBodies:
    """Return the rigid bodies of masks on the grid of the maps."""
    masks = []
    for path in paths:
        mask = read_volume("body mask", path, particles)
        validate.check_body_mask(path, mask, region)
        masks.append(mask.numpy())
    bodies = RigidBodies.from_masks(masks, particles.pixel_size, region.mask)
    validate.check_bodies(paths, masks, bodies, particles, region)
    return bodies


def _find_molecule(
    inputs: InputOptions, options: TrainOptions, particles: Particles, consensus: torch.Tensor
) -> MolecularRegion:
    try:
        return find_molecule(
            consensus,
            particles.pixel_size,
            options.threshold,
            options.threshold_resolution,
            options.threshold_percentile,
        )
    except ValueError as error:
        raise InputError(f"map {inputs.map}: {error}; lower --threshold or use another map") from error


def _working_box(inputs: InputOptions, options: TrainOptions, particles: Particles, region: MolecularRegion) -> int:
    even = particles.box - particles.box % 2
    if inputs.full_box:
        return even
    if inputs.working_box is not None:
        if inputs.working_box > particles.box:
            raise InputError(
                f"--working-box is {inputs.working_box}, but the images have {particles.box} pixels; use at most that"
            )
        return inputs.working_box
    volume = float(region.mask.sum()) * particles.pixel_size**3
    spacing = (volume / options.n_gaussians) ** (1 / 3)
    wanted = particles.box * particles.pixel_size / (_PIXELS_PER_SPACING * spacing)
    # Multiples of 16 are fast to transform and easy to pool.
    return int(min(even, max(32, 16 * np.ceil(wanted / 16))))
