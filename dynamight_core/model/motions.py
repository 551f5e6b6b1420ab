"""Principal motions: what both halves' deformations have in common, one space for all particles.

Latents of the two halves cannot be compared; deformations can. The displacements of all particles on common
points of the consensus frame, analysed together by PCA, give motions with one coordinate per particle.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from dynamight_core.errors import understood
from dynamight_core.files import atomic_path
from dynamight_core.model.half import HalfModel

# Of the variance of a half's coordinates: directions with less determine no fields of their own.
_DAMPING = 1e-3
# Particles at a time.
_BATCH = 256
# The moving part: points with at least this fraction of the motion at this quantile.
_MOVING, _MOBILE_QUANTILE = 0.5, 0.95


@dataclass
class PrincipalMotions:
    """Motions shared by both halves.

    Parameters
    ----------
    points
        (m, 3) A, consensus frame: a subsample of both halves' Gaussians.
    mean
        (m, 3) mean displacement, A.
    components
        (K, m, 3) motions; the mean square over points of each is 1.
    coordinates
        (n, K) of every particle, A rms.
    shares
        (K,) of the variance of the displacements.
    """

    points: torch.Tensor
    mean: torch.Tensor
    components: torch.Tensor
    coordinates: torch.Tensor
    shares: torch.Tensor

    def displacement(self, coordinates: torch.Tensor) -> torch.Tensor:
        """Return (b, m, 3) displacements (A) of the points at (b, K) coordinates."""
        displacement: torch.Tensor = self.mean + torch.tensordot(coordinates, self.components, dims=1)
        return displacement

    def project(self, displacement: torch.Tensor) -> torch.Tensor:
        """Return the (b, K) coordinates (A rms) of (b, m, 3) displacements (A) of the points."""
        return torch.einsum("bmi,kmi->bk", displacement - self.mean, self.components) / len(self.points)

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, atomically."""
        with atomic_path(path) as temporary:
            safetensors.torch.save_file({k: v.contiguous() for k, v in vars(self).items()}, temporary)

    @classmethod
    def load(cls, path: str | Path) -> "PrincipalMotions":
        """Read what `save` wrote.

        Raises
        ------
        InputError
            if the file is damaged.
        """
        with understood(path, "make it again with dynamight train --resume"):
            found = cls(**safetensors.torch.load_file(path))
            m, k, n = len(found.points), len(found.components), len(found.coordinates)
            shapes = {"points": (m, 3), "mean": (m, 3), "components": (k, m, 3), "coordinates": (n, k), "shares": (k,)}
            for name, shape in shapes.items():
                if tuple(getattr(found, name).shape) != shape:
                    raise ValueError(f"{name} has another shape than {shape}")
        return found


def moving_points(motion: torch.Tensor) -> torch.Tensor:
    """Return which points are the moving part, (m,) bool, from their motion, A rms."""
    return motion >= _MOVING * motion.quantile(_MOBILE_QUANTILE)


def principal_motions(
    displacements: Callable[[torch.Tensor], torch.Tensor], n: int, points: torch.Tensor, n_motions: int
) -> PrincipalMotions:
    """Analyse the displacements of n particles at common points.

    The (3m, 3m) covariance would be large and the (n, n) one larger: an orthonormal sketch of the range is found
    with one pass over a sample of the particles, and the covariance taken inside it with a second over all.

    Parameters
    ----------
    displacements
        takes (b,) rows, gives (b, m, 3) displacements of `points`, A.
    n
        particles.
    points
        (m, 3) A, consensus frame.
    n_motions
        K; fewer where there are fewer particles or points.
    """
    n_points = len(points)
    sample = torch.linspace(0, n - 1, min(n, 2000)).long().unique()
    sketch = torch.cat([displacements(rows).flatten(1) for rows in sample.split(_BATCH)])
    rank = min(4 * n_motions, *sketch.shape)
    basis = torch.linalg.svd(sketch - sketch.mean(0), full_matrices=False)[2][:rank]
    parts, mean, power = [], torch.zeros(3 * n_points), 0.0
    for rows in torch.arange(n).split(_BATCH):
        shift = displacements(rows).flatten(1)
        mean += shift.sum(0) / n
        power += float(shift.square().sum()) / n
        parts.append(shift @ basis.T)
    projected = torch.cat(parts)
    centred = projected - projected.mean(0)
    left, sizes, right = torch.linalg.svd(centred, full_matrices=False)
    kept = min(n_motions, len(sizes))
    scale = n_points**0.5  # unit norm over 3m numbers to unit mean square over m points
    coordinates = left[:, :kept] * sizes[:kept] / scale
    components = (right[:kept] @ basis) * scale
    # A sign that does not depend on the library: the largest element of each motion is positive.
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0)
    variance = max(power - float(mean.square().sum()), 1e-12)
    return PrincipalMotions(
        points,
        mean.reshape(n_points, 3),
        (components * sign).reshape(kept, n_points, 3),
        coordinates * sign[:, 0],
        sizes[:kept].square() / n / variance,
    )


def motion_fields(
    model: HalfModel, latents: torch.Tensor, coordinates: torch.Tensor, points: torch.Tensor, batch: int = 64
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the principal motions at any points under one half's decoder.

    Least squares of the displacements of that half's particles on their coordinates. Where coordinates are correlated
    in the half (a single motion in which the halves differ a little is a line across two coordinates), the particles
    do not determine each field, and the smallest fields are taken.

    Parameters
    ----------
    model
        of the half.
    latents, coordinates
        (n, d) and (n, K) of its particles.
    points
        (p, 3) consensus frame, A.

    Returns
    -------
    tuple
        mean (p, 3) and fields (K, p, 3), A and A per A rms.
    """
    # Some thousand particles determine K + 1 fields.
    chosen = torch.linspace(0, len(latents) - 1, min(len(latents), 4000)).long().unique()
    centre = coordinates[chosen].mean(0)
    design = coordinates[chosen] - centre
    scatter = design.T @ design / len(chosen)
    damping = _DAMPING * scatter.trace() * torch.eye(len(scatter))
    solver = torch.linalg.pinv(scatter + damping, hermitian=True) @ design.T / len(chosen)
    with torch.no_grad():
        evaluate = model.consensus_evaluator(points.to(model.latent_mean.device))
    mean, fields = torch.zeros(len(points), 3), torch.zeros(len(scatter), len(points), 3)
    with torch.no_grad():
        for part in torch.arange(len(chosen)).split(batch):
            shift = evaluate(latents[chosen[part]].to(model.latent_mean)).cpu()
            mean += shift.sum(0) / len(chosen)
            fields += torch.tensordot(solver[:, part], shift, dims=1)
    return mean - torch.tensordot(centre, fields, dims=1), fields
