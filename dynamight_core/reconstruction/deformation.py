"""The deformations of a half-set for a reconstruction: their field, weight and frame."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dynamight_core.errors import InputError
from dynamight_core.imaging.geometry import inside_box, nearest_voxels
from dynamight_core.imaging.masks import distance_from_voxels, raised_cosine
from dynamight_core.imaging.modes import Modes, find_modes
from dynamight_core.imaging.voxels import CoarseField
from dynamight_core.judging.distribution import consensus_coordinates, densest_conformation
from dynamight_core.model.half import ConsensusField
from dynamight_core.options import ReconstructOptions
from dynamight_core.reconstruction.frames import StateField
from dynamight_core.reconstruction.images import FullImages
from dynamight_core.reconstruction.inverse import ForwardFromInverse, load_inverse
from dynamight_core.reconstruction.support import MIN_PARTICLES, Support, mode_support
from dynamight_core.reporter import Reporter
from dynamight_core.run import Run

# Particles that represent a latent under the decoder of the other half-set.
_NEIGHBOURS = 8
# Voxels between two nodes of a field that is evaluated for each particle (paper).
_SPACING = 2
# Fraction of a half-set's particles whose mean latent is that of coordinates, and the density of the consensus frame,
# relative to the densest conformation, from which on it stays the frame of the maps.
_NEAR, _DENSE = 0.01, 0.5


def inverse_path(run: Run, half: int) -> Path:
    """Return the path of the inverse field of a half-set."""
    return Path(run.path) / f"half{half}" / "inverse.safetensors"


def half_field(run: Run, half: int, through_inverse: bool, device: torch.device | str) -> ConsensusField:
    """Return the forward field of a half-set in the consensus frame."""
    model = run.models[half - 1].to(device)
    if through_inverse:
        return ConsensusField(model, ForwardFromInverse(load_inverse(inverse_path(run, half), device)))
    return ConsensusField(model)


def supported(run: Run) -> bool:
    """Return whether the verdict of a run is other than "not supported"."""
    return bool(run.summary["verdict"]["verdict"] != "not supported")


def half_modes(run: Run, half: int, images: FullImages, options: ReconstructOptions) -> tuple[Modes, Support | None]:
    """Return the modes of a half-set's deformations, down-weighted to what its held-out particles support.

    There are none if the verdict is "not supported": a large motion that was learned wrong can explain held-out images
    slightly better than no motion, and blurs the map. The support is None if it is not requested, nothing moves, or too
    few particles are held out. With `modes` off, the modes stand for a field that is evaluated for each particle.
    """
    model = run.models[half - 1].to(images.device)
    field = half_field(run, half, options.through_inverse, images.device)
    latents = run.latents[half - 1].to(images.device)
    modes = find_modes(field, latents, model.consensus_positions, images.pixel_size)
    if not options.modes:
        return replace(modes, exact=(CoarseField(field, _SPACING), latents)), None
    if options.shrink and not supported(run):
        return modes.scaled(torch.zeros(len(modes))), None
    rows = torch.where((run.halves == half) & run.validation)[0]
    if not options.shrink or not len(modes) or len(rows) < MIN_PARTICLES:
        return modes, None
    data = images.training_images(rows, model.box)
    support = mode_support(model, field, modes, data, torch.arange(len(rows)), options.seed)
    return modes.scaled(support.factors), support


def chosen_conformation(run: Run, conformation: str, stays: bool, reporter: Reporter) -> str:
    """Return the conformation that "auto" stands for: the densest, or the reference if that is almost as dense.

    It is the reference as well where the maps have to stay in the consensus frame. Any other conformation is returned
    as it is.
    """
    if conformation != "auto":
        return conformation
    if stays:
        return "reference"
    densest, density = densest_conformation(run)
    if density >= _DENSE:
        reporter.say(
            "Frame of the maps: the consensus, because particles are "
            f"{'as' if density > 0.9 else f'{density:.1f} times as'} dense there as in the densest conformation."
        )
        return "reference"
    values = ",".join(f"{value:.2f}" for value in densest)
    reporter.say(
        f"Frame of the maps: the densest conformation, motions {values} A; particles are {density:.2f} times as dense "
        "in the consensus frame. Use --conformation reference for the consensus frame."
    )
    return f"motions:{values}"


def half_conformation(run: Run, half: int, conformation: str, device: torch.device | str) -> torch.Tensor | None:
    """Return the latent of a conformation under a half-set's decoder, None for the reference.

    Raises
    ------
    InputError
        if there is no such particle, or the latent has the wrong dimension.
    """
    if conformation == "reference":
        return None
    latents = run.latents[half - 1].to(device)
    kind, _, text = conformation.partition(":")
    n_motions = run.motions.coordinates.shape[1]
    try:
        numbers = [float(part) for part in text.split(",")]
        if kind == "particle" and len(numbers) == 1 and 1 <= int(text) <= len(latents):
            return latents[int(text) - 1]
    except ValueError:
        numbers = []
    if kind == "motions" and 1 <= len(numbers) <= n_motions:
        own = torch.where(run.halves == half)[0]
        centre = conformation_coordinates(run, conformation).float()
        distance = (run.motions.coordinates[own] - centre).norm(dim=1)
        return latents[own[distance.argsort()[: max(_NEIGHBOURS, int(_NEAR * len(own)))]].to(device)].mean(0)
    if kind == "latent" and len(numbers) == latents.shape[1]:
        # Latents of different half-sets cannot be compared, but every particle has one under both decoders.
        nearest = _nearest_to_latent(run, numbers).to(device)
        return torch.tensor(numbers, device=device) if half == 1 else latents[nearest].mean(0)
    raise InputError(
        f"--conformation is '{conformation}'; use auto, reference, particle:ROW with a row of particles.star from 1 to "
        f"{len(latents)}, motions: and up to {n_motions} coordinates (A rms), or latent: and {latents.shape[1]} "
        "numbers for half-set 1's decoder; separate numbers by commas"
    )


def conformation_coordinates(run: Run, conformation: str) -> torch.Tensor:
    """Return the (K,) coordinates (A rms, float64) of a conformation that `half_conformation` accepts.

    Those of a latent are the mean over the particles nearest to it.
    """
    if conformation == "reference":
        return consensus_coordinates(run).double()
    coordinates = run.motions.coordinates
    kind, _, text = conformation.partition(":")
    if kind == "particle":
        return coordinates[int(text) - 1].double()
    numbers = [float(part) for part in text.split(",")]
    if kind == "motions":
        return torch.tensor(numbers + [0.0] * (coordinates.shape[1] - len(numbers)), dtype=torch.float64)
    return coordinates.float()[_nearest_to_latent(run, numbers)].mean(0).double()


def _nearest_to_latent(run: Run, latent: Sequence[float]) -> torch.Tensor:
    """Return the particles nearest to a latent of half-set 1's decoder, by their latents under it."""
    return (run.latents[0] - torch.tensor(latent)).norm(dim=1).argsort()[:_NEIGHBOURS]


def in_conformation(run: Run, half: int, modes: Modes, conformation: str) -> tuple[Modes, torch.Tensor]:
    """Return the modes in the frame of a conformation, and the (m, 3) Gaussians in that conformation, A."""
    points = run.models[half - 1].consensus_positions
    latent = half_conformation(run, half, conformation, points.device)
    if latent is None or not len(modes):
        return modes, points
    state = _coordinates(run, half, modes, latent)
    field = StateField(modes.field, state, points)
    return replace(modes, field=field, coordinates=modes.coordinates - state), field.positions


def _coordinates(run: Run, half: int, modes: Modes, latent: torch.Tensor) -> torch.Tensor:
    """Return the (K,) coordinates of a latent, interpolated between particles with the nearest latents."""
    distance = (run.latents[half - 1].to(latent) - latent).norm(dim=1)
    values, nearest = distance.topk(min(_NEIGHBOURS, len(distance)), largest=False)
    if values[0] == 0:
        return modes.coordinates[nearest[0]]
    weight = 1 / values
    return (modes.coordinates[nearest] * (weight / weight.sum())[:, None]).sum(0)


@torch.no_grad()
def model_points(run: Run, latents: list[torch.Tensor | None]) -> list[torch.Tensor]:
    """Return the (m, 3) Gaussians (A) of each half-set at its latent; of the consensus frame if that is None."""
    points = []
    for model, latent in zip(run.models, latents, strict=True):
        positions = model.consensus_positions
        if latent is not None:
            positions = positions + model.consensus_evaluator(positions)(latent[None].to(positions))[0]
        points.append(positions)
    return points


@torch.no_grad()
def model_map(run: Run, points: list[torch.Tensor]) -> torch.Tensor:
    """Return the (box, box, box) mean map of both half-sets' Gaussians at (m, 3) `points` (A)."""
    particles, total = run.particles, torch.zeros(())
    for model, positions in zip(run.models, points, strict=True):
        scale = particles.pixel_size / model.pixel_size
        positions = positions.to(model.gaussians.positions)
        total = total + model.gaussians.render(particles.box, particles.pixel_size, positions).cpu() * scale / 2
    return total


def deforming_region(points: torch.Tensor, box: int, pixel_size: float, radius: float) -> torch.Tensor:
    """Return (box, box, box) weights of the displacement: 1 within `radius` (A) of (m, 3) points, 0 beyond twice it."""
    distance = distance_from_points(points.cpu().numpy(), box, pixel_size)
    return torch.from_numpy(raised_cosine(distance / radius - 1).astype(np.float32))


def distance_from_points(points: np.ndarray, box: int, pixel_size: float) -> np.ndarray:
    """Return the (box, box, box) distance (A) of each voxel from the nearest of (m, 3) points (A) inside the box."""
    voxels = nearest_voxels(points, box, pixel_size)
    return distance_from_voxels(voxels[inside_box(voxels, box)], box, pixel_size)
