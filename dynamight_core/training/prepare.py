"""From files to what training needs, with everything that could stop a run refused here."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from dynamight_core.config import InputOptions, TrainOptions
from dynamight_core.errors import InputError
from dynamight_core.files import read_map
from dynamight_core.imaging.fourier import lowpass_volume, resample_volume
from dynamight_core.model.bodies import RigidBodies, body_shares
from dynamight_core.model.gaussians import GaussianModel
from dynamight_core.model.half import HalfModel
from dynamight_core.model.initialise import MolecularRegion, fill_region, find_molecule, fit_to_map
from dynamight_core.particles.cache import ImageCache
from dynamight_core.particles.halves import assign_halves, choose_validation
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.metadata import Particles, check_enough, read_particles
from dynamight_core.particles.premultiplication import MULTIPLIED, NOT_MULTIPLIED, power_at_ctf_zeros
from dynamight_core.particles.preprocess import Preprocessing
from dynamight_core.training.atomic import AtomicModel, read_atomic_model
from dynamight_core.training.data import TrainingImages

# Working pixels per mean distance between Gaussians: finer frequencies they cannot explain.
_PIXELS_PER_SPACING = 0.6
# The start map has at least so many voxels a side at a quarter of the initial resolution.
_LEAST_START_BOX = 16
# Images of a half-set, and of those the held-out ones: with fewer, nothing can be learned, or judged.
_LEAST_IN_HALF, _LEAST_HELD_OUT = 50, 5
# A body has at least this share of the molecule.
_LEAST_BODY = 0.01
# ... and this share of what lies in its own mask is its own.
_LEAST_OWN = 0.6


@dataclass
class Prepared:
    """A particle set ready to train on.

    Parameters
    ----------
    particles
        metadata.
    halves
        (n,) 1 or 2.
    validation
        (n,) bool, particles that train no decoder.
    volumes
        start map of each half, [z, y, x]; the same twice if there are no half-maps.
    region
        where the molecule is, on the grid of the maps.
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

    particles: Particles
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
        """Pixel size of the cropped images, A."""
        return self.particles.pixel_size * self.particles.box / self.working_box

    def preprocessing(self, inputs: InputOptions, box: int | None = None, mask: bool = True) -> Preprocessing:
        """Return the preprocessing of the run's images, at the working box unless `box` is given."""
        return Preprocessing(
            working_box=box or self.working_box,
            diameter=inputs.particle_diameter,
            mask=mask,
            invert=inputs.invert_contrast,
            normalise=inputs.normalise,
        )


def open_particles(inputs: InputOptions, seed: int) -> tuple[Particles, torch.Tensor, bool]:
    """Read the particles and their half-sets.

    Returns
    -------
    tuple
        particles, (n,) halves, and whether the half-sets were drawn here.
    """
    if inputs.project is not None and not Path(inputs.project).is_dir():
        raise InputError(
            f"--project is {inputs.project}, which is no folder; give the one that image paths are relative to"
        )
    particles = read_particles(inputs.star, inputs.project)
    check_enough(particles)
    if inputs.premultiplied is not None:
        particles.premultiplied = inputs.premultiplied
    halves, drawn = assign_halves(particles, seed)
    for half, n in enumerate(_images(particles, halves > 0, halves), 1):
        if n < _LEAST_IN_HALF:
            raise InputError(
                f"{particles.star_path} has {n} images with rlnRandomSubset {half}, too few to learn motion from; give "
                f"at least {_LEAST_IN_HALF} in each half-set, or remove the column for a random split"
            )
    return particles, halves, drawn


def choose_decoder(inputs: InputOptions, options: TrainOptions) -> TrainOptions:
    """Return the options with the decoder that the inputs ask for.

    Raises
    ------
    InputError
        if the two contradict each other.
    """
    if not inputs.bodies:
        if options.decoder == "bodies":
            raise InputError("--decoder is 'bodies' but there is no mask of any; give --bodies, or another decoder")
        return options
    if options.decoder == "coordinate":
        raise InputError("--bodies is a decoder of its own; leave --decoder out")
    if inputs.mask:
        raise InputError("--bodies says already what may move; leave --mask out")
    if options.regularisation == "dynamic":
        raise InputError("--regularisation dynamic weights distances, which --bodies keeps; leave it out")
    return replace(options, decoder="bodies")


def hold_out(particles: Particles, halves: torch.Tensor, options: TrainOptions) -> torch.Tensor:
    """Return the (n,) mask of the validation particles.

    Raises
    ------
    InputError
        if a half has too few of them for a verdict.
    """
    validation = choose_validation(halves, particles.image_groups, options.validation_fraction, options.seed)
    least = min(_images(particles, validation, halves))
    if least < _LEAST_HELD_OUT:
        raise InputError(
            f"--validation-fraction {options.validation_fraction:g} holds out {least} images of a half-set, too few "
            f"for a verdict; give a fraction that holds out at least {_LEAST_HELD_OUT}"
        )
    return validation


def _images(particles: Particles, chosen: torch.Tensor, halves: torch.Tensor) -> list[int]:
    """Return how many images the chosen rows of each half show."""
    return [len(particles.image_groups[chosen & (halves == half)].unique()) for half in (1, 2)]


def prepare(inputs: InputOptions, options: TrainOptions) -> Prepared:
    """Read and check particles, maps and atomic model.

    With an atomic model there are as many Gaussians as it gives: `options.n_gaussians` is set to them.

    Raises
    ------
    InputError
        with one sentence on what cannot be used.
    """
    particles, halves, drawn = open_particles(inputs, options.seed)
    notes, warnings = [], []
    if drawn:
        notes.append("the STAR file has no rlnRandomSubset: half-sets were drawn at random (dynHalf in particles.star)")
    validation = hold_out(particles, halves, options)
    consensus = _read_volume("map", inputs.map, particles)
    if inputs.half_maps:
        volumes = tuple(_read_volume("half-map", path, particles) for path in inputs.half_maps)
        if len(volumes) != 2:
            raise InputError(f"--half-maps has {len(volumes)} files; give the two half-maps of the consensus")
        if torch.equal(*volumes):
            raise InputError(
                f"--half-maps {' and '.join(inputs.half_maps)} are one map; give both half-maps of the consensus"
            )
    else:
        volumes = (consensus, consensus)
        notes.append(
            f"both halves start from one map, filtered at {options.initial_resolution:g} A; give --half-maps to "
            "keep them apart from the start"
        )
    coarsest = particles.box * particles.pixel_size * 4 / _LEAST_START_BOX
    if options.initial_resolution > coarsest:
        raise InputError(
            f"--initial-resolution is {options.initial_resolution:g} A, which leaves nothing of a box of "
            f"{particles.box * particles.pixel_size:g} A; give at most {coarsest:g}"
        )
    mask = None
    if inputs.mask:
        mask = _read_volume("mask", inputs.mask, particles)
        if mask.min() < -0.01 or mask.max() > 1.01:
            raise InputError(f"mask {inputs.mask} has values from {mask.min():.2g} to {mask.max():.2g}; give 0 to 1")
    try:
        region = find_molecule(consensus, particles.pixel_size, options.threshold)
    except ValueError as error:
        raise InputError(f"map {inputs.map}: {error}; lower --threshold or give another map") from error
    warnings += region.warnings
    atomic = read_atomic_model(inputs, options, particles, consensus, region)
    if atomic is not None:
        options.n_gaussians = len(atomic.coarse)
        notes += atomic.sentences()
    bodies = _read_bodies(inputs.bodies, particles, region) if inputs.bodies else None
    warnings += _check_premultiplied(particles, inputs.premultiplied, options.seed)
    return Prepared(
        particles,
        halves,
        validation,
        volumes,
        region,
        mask,
        atomic,
        bodies,
        _working_box(inputs, options, particles, region),
        notes,
        warnings,
    )


def load_images(
    prepared: Prepared, inputs: InputOptions, seed: int, device, folder: Path, progress=None
) -> TrainingImages:
    """Read all images once, prepare them at the working box and keep them."""
    reader = ImageReader(prepared.particles)
    preprocessing = prepared.preprocessing(inputs, mask=False).with_set_noise(reader, seed)
    cache = ImageCache(reader, preprocessing, device, inputs.storage, folder, progress)
    p = prepared.particles
    return TrainingImages(cache, p.ctf, p.matrices, prepared.working_box, prepared.working_pixel_size, device)


def start_gaussians(prepared: Prepared, options: TrainOptions, half: int) -> GaussianModel:
    """Return the Gaussians of a half, fitted to its start map.

    The fit runs on a grid of a third of the initial resolution, where the filtered map has all its detail.
    """
    particles = prepared.particles
    generator = torch.Generator().manual_seed(options.seed * 10 + half)
    extent = particles.box * particles.pixel_size
    coarse = min(particles.box, 2 * round(extent / max(particles.pixel_size, options.initial_resolution / 4) / 2))
    pixel_size = extent / coarse
    region = resample_volume(torch.from_numpy(prepared.region.mask).float(), coarse)
    soft = lowpass_volume(region, pixel_size, 20.0).clamp(0, 1)
    volume = lowpass_volume(resample_volume(prepared.volumes[half - 1], coarse), pixel_size, options.initial_resolution)
    if prepared.atomic is not None:
        return prepared.atomic.gaussians(volume * soft, pixel_size, generator)
    positions = fill_region(prepared.region.mask, options.n_gaussians, particles.pixel_size, generator)
    return fit_to_map(positions, volume * soft, pixel_size, options.width_classes, generator=generator)


def start_model(
    prepared: Prepared, gaussians: GaussianModel, inputs: InputOptions, options: TrainOptions, half: int, device
) -> HalfModel:
    """Return the untrained model of a half about its `start_gaussians`."""
    diameter = inputs.particle_diameter or 0.9 * prepared.particles.box * prepared.particles.pixel_size
    # The networks draw their weights from the global generator.
    torch.manual_seed(options.seed * 10 + half)
    return HalfModel(
        gaussians,
        prepared.working_box,
        prepared.working_pixel_size,
        options.n_latents,
        options.decoder,
        diameter,
        prepared.motion_mask,
        prepared.bodies,
    ).to(device)


@torch.no_grad()
def match_grey_scale(model: HalfModel, data: TrainingImages, rows: torch.Tensor) -> float:
    """Scale the Gaussians' amplitude to the images and return the correlation of model and images.

    Raises
    ------
    InputError
        if the images are the model's negative.
    """
    weights = model.frequency_weights()
    cross = model_power = image_power = 0.0
    for part in rows[:512].split(128):
        batch = data.batch(part)
        image = model.project(batch.matrices, batch.transfer)
        cross += float((weights * (image.conj() * batch.transforms).real).sum())
        model_power += float((weights * image.abs().square()).sum())
        image_power += float((weights * batch.transforms.abs().square()).sum())
    correlation = cross / np.sqrt(model_power * image_power)
    # The standard deviation of a chance correlation is one over the root of the number of pixels.
    chance = 1 / np.sqrt(min(len(rows), 512) * float((weights > 0).sum()))
    if correlation < -5 * chance:
        raise InputError(
            "the particles correlate negatively with the map; give --invert-contrast if they are dark, leave it out if "
            "they are white, or check the map"
        )
    if correlation > 5 * chance:
        model.gaussians.log_amplitudes += np.log(cross / model_power)
    return correlation / chance


def _read_volume(name: str, path: str, particles: Particles) -> torch.Tensor:
    volume, pixel_size = read_map(path, name)
    if volume.shape[0] != particles.box:
        raise InputError(
            f"{name} {path} has a box of {volume.shape[0]} voxels but the particles have {particles.box} pixels; "
            "resample it to the particles' box"
        )
    if abs(pixel_size / particles.pixel_size - 1) > 0.005:
        raise InputError(
            f"{name} {path} has a pixel size of {pixel_size:.4g} A but the particles have "
            f"{particles.pixel_size:.4g} A; resample it or correct its header"
        )
    return torch.from_numpy(volume)


def _read_bodies(paths: list[str], particles: Particles, region: MolecularRegion) -> RigidBodies:
    """Return the bodies of masks on the grid of the maps, which must share the molecule between them."""
    if len(paths) < 2:
        raise InputError(f"--bodies has one mask, {paths[0]}; give one for each of two or more bodies")
    masks = []
    for path in paths:
        masks.append(_read_volume("body mask", path, particles).numpy())
        low, high = masks[-1].min(), masks[-1].max()
        if low < -0.01 or high > 1.01:
            raise InputError(f"body mask {path} has values from {low:.2g} to {high:.2g}; give 0 to 1")
        inside = masks[-1] > 0.5
        if not inside.any():
            raise InputError(f"body mask {path} is empty (its largest value is {high:.2g}); give 1 inside the body")
        if (inside & region.mask).sum() < _LEAST_BODY * region.mask.sum():
            raise InputError(
                f"body mask {path} misses the molecule (it holds less than {100 * _LEAST_BODY:g} % of it); give a mask "
                "in the frame of the consensus map"
            )
    bodies = RigidBodies.from_masks(masks, particles.pixel_size, region.mask)
    for body, path in enumerate(paths):
        mine = (masks[body] > 0.5) & region.mask
        points = torch.from_numpy((np.argwhere(mine)[:, ::-1] - particles.box // 2) * particles.pixel_size).float()
        extent = particles.box * particles.pixel_size
        shares = body_shares(bodies.depths, bodies.largest, points, extent).mean(0)
        if shares[body] < _LEAST_OWN:
            shares[body] = 0
            raise InputError(
                f"body masks {path} and {paths[int(shares.argmax())]} overlap in most of the former; give masks of "
                "different parts"
            )
    return bodies


def _check_premultiplied(particles: Particles, given: bool | None, seed: int) -> list[str]:
    """Compare what images look like with what is said of them; a warning if the user said it, else a refusal."""
    with ImageReader(particles) as reader:
        share = power_at_ctf_zeros(reader, seed)
    if share is None or (particles.premultiplied and share < NOT_MULTIPLIED):
        return []
    if not particles.premultiplied and share > MULTIPLIED:
        return []
    looks, option = (
        ("do not look as if they had been multiplied by their CTF", "--no-premultiplied")
        if particles.premultiplied
        else ("look as if they had been multiplied by their CTF", "--premultiplied")
    )
    found = f"the images {looks} (where it is zero, {100 * max(share, 0):.0f} % of their power is left)"
    if given is not None:
        return [f"{found}, against {'--premultiplied' if given else '--no-premultiplied'}"]
    raise InputError(
        f"{found}, but {particles.star_path} says otherwise (rlnCtfDataAreCtfPremultiplied); give {option}, or "
        f"{'--premultiplied' if particles.premultiplied else '--no-premultiplied'} if it is right"
    )


def _working_box(inputs: InputOptions, options: TrainOptions, particles: Particles, region: MolecularRegion) -> int:
    even = particles.box - particles.box % 2
    if inputs.working_box is not None:
        if inputs.working_box > particles.box:
            raise InputError(
                f"--working-box is {inputs.working_box} but the images have {particles.box} pixels; give at most that"
            )
        return inputs.working_box
    volume = float(region.mask.sum()) * particles.pixel_size**3
    spacing = (volume / options.n_gaussians) ** (1 / 3)
    wanted = particles.box * particles.pixel_size / (_PIXELS_PER_SPACING * spacing)
    # Multiples of 16 transform quickly and pool evenly.
    return int(min(even, max(32, 16 * np.ceil(wanted / 16))))
