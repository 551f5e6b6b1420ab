"""The molecule of a run, of which each half-set has its own Gaussians and its own motions."""

import numpy as np
import torch

from dynamight_core.errors import InputError
from dynamight_core.model.motions import motion_fields
from dynamight_core.options.analyse import HALVES
from dynamight_core.run import Run


def half_numbers(half: str) -> tuple[int, ...]:
    """Return the numbers of the half-sets that "1", "2" or "both" means.

    Raises
    ------
    InputError
        if it is none of these.
    """
    if str(half) not in HALVES:
        raise InputError(f"--half is '{half}'; choose one of {', '.join(HALVES)}")
    return (1, 2) if str(half) == "both" else (int(half),)


def all_gaussians(run: Run) -> np.ndarray:
    """Return the (p, 3) Gaussians of both half-sets in the consensus frame, A."""
    return np.concatenate([model.consensus_positions.cpu().numpy() for model in run.models])


def half_motions(run: Run, half: int, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean displacement (m, 3) and the motions (K, m, 3) at points under a half-set's decoder.

    See `motion_fields`, which fits them to the particles of the half-set.
    """
    own = run.halves == half
    return motion_fields(run.models[half - 1], run.latents[half - 1][own], run.motions.coordinates[own], points)


def spread_out(points: np.ndarray, n: int) -> np.ndarray:
    """Return n indices of points, each farthest from the points before it."""
    chosen = [int(np.argmax(np.linalg.norm(points - points.mean(0), axis=1)))]
    distance = np.linalg.norm(points - points[chosen[0]], axis=1)
    for _ in range(min(n, len(points)) - 1):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return np.array(chosen)


def xyz_columns(name: str, values: np.ndarray, unit: str = "A") -> dict[str, np.ndarray]:
    """Return columns NAME_x_UNIT, NAME_y_UNIT and NAME_z_UNIT of (..., 3) values."""
    return {f"{name}_{axis}_{unit}": part for axis, part in zip("xyz", np.moveaxis(values, -1, 0), strict=True)}


def main_rotation(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the main axis of (n, 3) rotation vectors (radians), and their (n,) angles, positive about it, degrees.

    The axis is a unit vector whose largest component is positive.
    """
    axis = np.linalg.svd(vectors, full_matrices=False)[2][0]
    axis = axis * np.sign(axis[np.abs(axis).argmax()])
    return axis, np.degrees(np.linalg.norm(vectors, axis=1) * np.where(vectors @ axis < 0, -1.0, 1.0))
