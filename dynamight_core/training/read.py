"""From files to a data set that is ready for training."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from dynamight_core.errors import FAILED, InputError, Problems
from dynamight_core.files import read_map
from dynamight_core.model.bodies import RigidBodies
from dynamight_core.model.initialise import MolecularRegion, find_molecule
from dynamight_core.options import InputOptions, TrainOptions
from dynamight_core.options.presets import LABELS
from dynamight_core.particles.halves import assign_halves, choose_validation, torn
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.inputs import read_input_particles
from dynamight_core.particles.metadata import Particles, check_enough
from dynamight_core.particles.plausible import check_plausible
from dynamight_core.particles.preprocess import Preprocessing
from dynamight_core.particles.relatives import default_distance, find_relatives
from dynamight_core.particles.symmetry import check_symmetry
from dynamight_core.reporter import Reporter
from dynamight_core.training import validate
from dynamight_core.training.atomic import AtomicModel, read_atomic_model
from dynamight_core.training.comparison import compare_with_map, comparison_box

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


@dataclass
class Opened:
    """Particles and their half-sets; `FAILED` in the place of what could not be had.

    Parameters
    ----------
    particles
        metadata.
    plausible
        whether their values are possible.
    relatives
        (n,) numbers of groups of relatives.
    halves
        (n,) 1 or 2.
    random
        whether the half-sets were assigned at random.
    validation
        (n,) bool.
    """

    particles: Particles
    plausible: None
    relatives: torch.Tensor
    halves: torch.Tensor
    random: bool
    validation: torch.Tensor


def open_particles(inputs: InputOptions, options: TrainOptions, problems: Problems) -> Opened:
    """Read the particles, their half-sets and the validation particles."""
    step = problems.step
    step(_check_project, inputs)
    particles = step(read_input_particles, inputs)
    step(check_enough, particles)
    plausible = step(check_plausible, particles)
    relatives = step(_relatives, particles, inputs)
    halves, random = FAILED, False
    if relatives is not FAILED:
        halves, random = assign_halves(particles, relatives, options.seed)
    step(validate.check_poses, particles, options)
    enough = step(validate.check_half_sets, particles, halves)
    validation = step(_hold_out, relatives, halves, options, after=[enough])
    return Opened(particles, plausible, relatives, halves, random, validation)


def _check_project(inputs: InputOptions) -> None:
    if inputs.project is not None and not Path(inputs.project).is_dir():
        raise InputError(
            f"--project is {inputs.project}, not a folder; use the folder that image paths are relative to"
        )


def _relatives(particles: Particles, inputs: InputOptions) -> torch.Tensor:
    distance = inputs.relative_distance
    if distance is None:
        distance = default_distance(particles, inputs.particle_diameter)
    return find_relatives(particles, distance)


def _hold_out(relatives: torch.Tensor, halves: torch.Tensor, options: TrainOptions) -> torch.Tensor:
    """Return the (n,) mask of the validation particles; relatives are held out together."""
    validation = choose_validation(halves, relatives, options.validation_fraction, options.seed)
    validate.check_held_out(relatives, halves, validation, options)
    return validation


def read_inputs(inputs: InputOptions, options: TrainOptions) -> Prepared:
    """Read and check particles, maps, masks and atomic model.

    Raises
    ------
    InputError
        with all reasons why they cannot be used.
    """
    problems = Problems()
    prepared = gather_inputs(inputs, options, problems)
    problems.refuse()
    assert prepared is not None
    return prepared


def gather_inputs(
    inputs: InputOptions,
    options: TrainOptions,
    problems: Problems,
    look: Callable[[Particles], ImageReader] = ImageReader,
) -> Prepared | None:
    """Read and check particles, maps, masks and atomic model.

    Parameters
    ----------
    inputs, options
        of the training.
    problems
        takes all reasons why they cannot be used.
    look
        opens the stacks; it may refuse images.

    Returns
    -------
    Prepared
        None if something cannot be used.
    """
    step = problems.step
    completed = step(validate.complete_options, inputs, options)
    options = options if completed is FAILED else completed
    opened = open_particles(inputs, options, problems)
    particles, halves = opened.particles, opened.halves
    maps = _read_maps(inputs, options, particles, problems)
    region = step(_find_molecule, inputs, options, particles, maps.consensus)
    if inputs.mask:
        step(validate.check_mask, inputs.mask, maps.mask, region)
    atomic = step(read_atomic_model, inputs, options, particles, maps.consensus, region)
    if atomic is not FAILED and atomic is not None:
        options = replace(options, n_gaussians=len(atomic.coarse))
    bodies = step(read_bodies, inputs.bodies, particles, region) if inputs.bodies else None
    box = step(_working_box, inputs, options, particles, region)
    reader = step(look, particles)
    multiplied = step(
        validate.check_premultiplied, reader, inputs.premultiplied, options.seed, after=[opened.plausible]
    )
    step(_compare, inputs, options, reader, maps.consensus, after=[opened.plausible, multiplied])
    if problems.sentences:
        return None
    notes, warnings = _remarks(inputs, options, opened, atomic)
    warnings += [*region.warnings, *multiplied]
    return Prepared(
        inputs,
        options,
        particles,
        opened.relatives,
        halves,
        opened.validation,
        (maps.halves[0], maps.halves[1]),
        region,
        maps.mask,
        atomic,
        bodies,
        box,
        notes,
        warnings,
    )


@dataclass
class _Maps:
    """Volumes on the grid of the particles, or `FAILED`: consensus, those of the half-sets, mask of motion or None."""

    consensus: torch.Tensor = FAILED
    halves: list[torch.Tensor] = field(default_factory=list)
    mask: torch.Tensor | None = None


def _read_maps(inputs: InputOptions, options: TrainOptions, particles: Particles, problems: Problems) -> _Maps:
    """Read maps and mask; without particles, they are only looked at by themselves."""
    step = problems.step
    if particles is FAILED:
        for name, path in [("map", inputs.map), *(("half-map", path) for path in inputs.half_maps or [])]:
            step(read_map, path, name)
        return _Maps()
    consensus = step(read_volume, "map", inputs.map, particles)
    if inputs.symmetry is not None:
        step(check_symmetry, inputs.map, consensus, inputs.symmetry)
    white = step(validate.check_contrast, inputs.map, consensus)
    volumes = [consensus, consensus]
    if inputs.half_maps:
        volumes = [step(read_volume, "half-map", path, particles) for path in inputs.half_maps]
        if not any(volume is FAILED for volume in volumes):
            step(validate.check_half_maps, inputs.half_maps, volumes)
    step(validate.check_initial_resolution, particles, options)
    mask = step(_read_mask, inputs, particles)
    return _Maps(FAILED if white is FAILED else consensus, volumes, mask)


def _read_mask(inputs: InputOptions, particles: Particles) -> torch.Tensor | None:
    if not inputs.mask:
        return None
    mask = read_volume("mask", inputs.mask, particles)
    validate.check_mask_range("mask", inputs.mask, mask)
    return mask.clamp(0, 1)


def _compare(inputs: InputOptions, options: TrainOptions, reader: ImageReader, consensus: torch.Tensor) -> float:
    """Refuse images that do not fit the map, see `comparison`."""
    box = comparison_box(reader.particles.box)
    prepare = Preprocessing(box, inputs.particle_diameter, inputs.invert_contrast)
    return compare_with_map(reader, prepare, consensus, str(inputs.map), options.seed)


def _remarks(
    inputs: InputOptions, options: TrainOptions, opened: Opened, atomic: AtomicModel | None
) -> tuple[list[str], list[str]]:
    """Return notes and warnings for the user."""
    notes, warnings = [], list(_torn_relatives(opened.halves, opened.relatives))
    if opened.random:
        notes.append("the particles have no half-sets; they are assigned at random (rlnRandomSubset in particles.star)")
    if inputs.symmetry is not None:
        notes += _on_symmetry(inputs)
    if not inputs.half_maps:
        notes.append(
            f"both half-sets are initialised from one map, {_filtered(options.initial_resolution)}; set --half-maps to "
            "keep them independent"
        )
    if atomic is not None:
        notes += atomic.sentences()
    return notes, warnings


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
            f"{number} particles have relatives (the same original image, helical tube or place) in the other "
            "half-set, so that the FSC may show more than there is; keep such particles in one half-set"
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
