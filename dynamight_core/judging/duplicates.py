"""Particles that occur in both half-sets: relatives that the metadata tell, and images that share their noise."""

import math
from dataclasses import dataclass

import torch
from scipy.spatial import cKDTree

from dynamight_core.imaging.fourier import fourier_to_image, plane_multiplicity
from dynamight_core.model.half import HalfModel
from dynamight_core.particles.halves import torn
from dynamight_core.particles.metadata import Particles
from dynamight_core.sampling import evenly
from dynamight_core.training.data import TrainingImages

# Images of one particle have nearly one pose (degrees) and one defocus (A).
_SAME_POSE, _SAME_DEFOCUS = 10.0, 300.0
# Pairs that are correlated, and largest shift between them, working pixels.
_MAX_PAIRS, _REACH = 20_000, 3
# Standard deviations by which a correlation exceeds the largest one expected by chance.
_SIGMAS = 4.0
_BATCH = 64


@dataclass
class Duplicates:
    """Particles with a relative in the other half-set.

    Parameters
    ----------
    fraction, error
        of the particles, and its standard error.
    reason
        how most of them were recognised.
    """

    fraction: float
    error: float
    reason: str


def find_duplicates(
    particles: Particles,
    relatives: torch.Tensor,
    models: tuple[HalfModel, HalfModel],
    data: TrainingImages,
    halves: torch.Tensor,
) -> Duplicates:
    """Find the particles that have a relative in the other half-set.

    Parameters
    ----------
    relatives
        (n,) groups of relatives by the metadata (`particles.relatives`).
    models
        of both half-sets at rest; what they explain is subtracted before images are correlated.
    """
    known = torn(halves, relatives)
    alike = torch.zeros_like(known)
    alike[_same_noise(particles, models, data, halves).flatten()] = True
    fraction = float((known | alike).double().mean())
    error = math.sqrt(max(fraction * (1 - fraction), 0.0) / len(halves))
    by_metadata = int(known.sum()) >= int((alike & ~known).sum())
    return Duplicates(fraction, error, "by their metadata" if by_metadata else "images with the same noise")


def _same_noise(
    particles: Particles, models: tuple[HalfModel, HalfModel], data: TrainingImages, halves: torch.Tensor
) -> torch.Tensor:
    """Return (p, 2) rows, the first of half-set 1, whose noise correlates more than chance allows.

    Only images with nearly the same pose and defocus are compared: those of one particle are. Of several images of a
    particle, it is the first.
    """
    particles = particles if data.series is None else particles.first_images()
    rotation = math.sqrt(8) * math.sin(math.radians(_SAME_POSE) / 2)
    defocus = (particles.ctf.defocus_u + particles.ctf.defocus_v) / 2 * (rotation / _SAME_DEFOCUS)
    points = torch.cat([particles.matrices.flatten(1), defocus[:, None]], 1).numpy()
    first, second = (torch.where(halves == half)[0] for half in (1, 2))
    near = cKDTree(points[first]).query_ball_tree(cKDTree(points[second]), rotation)
    candidates = [(int(first[i]), int(second[j])) for i, others in enumerate(near) for j in others]
    if not candidates:
        return torch.zeros(0, 2, dtype=torch.long)
    pairs = evenly(torch.tensor(candidates), _MAX_PAIRS)
    pairs = pairs[particles.image_groups[pairs[:, 0]] != particles.image_groups[pairs[:, 1]]]
    excess = torch.cat([_excess(models, data, part) for part in pairs.split(_BATCH)])
    chance = math.sqrt(2 * math.log(max(2, len(pairs)) * (2 * _REACH + 1) ** 2))
    return pairs[excess > chance + _SIGMAS]


@torch.no_grad()
def _excess(models: tuple[HalfModel, HalfModel], data: TrainingImages, pairs: torch.Tensor) -> torch.Tensor:
    """Return the (p,) correlations of the noise of (p, 2) rows over those by chance, the largest over small shifts."""
    noises = []
    for model, rows in zip(models, pairs.T, strict=True):
        batch = data.image_batch(rows if data.series is None else data.series.first[rows])
        # The inverse transform counts columns twice that stand for two.
        weights = model.frequency_weights(resolution=0) / plane_multiplicity(data.box, batch.transforms.device)
        residual = batch.transforms - model.project(batch.matrices, batch.transfer, _at_rest(model, len(rows)))
        noises.append(residual * weights.sqrt())
    product = fourier_to_image(noises[0] * noises[1].conj(), data.box)
    middle = data.box // 2
    reach = slice(middle - _REACH, middle + _REACH + 1)
    near = product[:, reach, reach].flatten(1).amax(1)
    return (near / product.square().mean((1, 2)).sqrt()).cpu()


def _at_rest(model: HalfModel, number: int) -> torch.Tensor:
    return model.consensus_positions.expand(number, -1, -1)
