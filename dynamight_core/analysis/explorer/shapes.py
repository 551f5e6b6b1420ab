"""Shapes that the explorer draws: chain traces of atomic models, the first view, and parts of densities."""

import gemmi
import numpy as np
import torch

# Fraction of the density's integral that the surface encloses at first.
_ENCLOSED = 0.8
# Consecutive atoms of a trace that are farther apart have a gap between them, A.
_MAX_BOND = 9.0


def chain_trace(structure: gemmi.Structure | None) -> tuple[torch.Tensor, np.ndarray]:
    """Return the (a, 3) positions (A, as in the file) of CA and P atoms along chains, and (a,) 1 where a chain begins.

    A model without such atoms has an empty trace.
    """
    positions, starts = [], []
    for chain in structure[0] if structure is not None else ():
        last = None
        for residue in chain:
            for name in ("CA", "P"):
                atom = residue.find_atom(name, "*")
                if atom is not None and atom.element.name in ("C", "P"):
                    place = np.array(atom.pos.tolist())
                    starts.append(float(last is None or np.linalg.norm(place - last) > _MAX_BOND))
                    positions.append(place)
                    last = place
                    break
    return torch.tensor(np.array(positions, dtype=np.float32).reshape(-1, 3)), np.array(starts, dtype=np.float32)


def first_view(points: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """Return the (3, 3) rotation to a view of (m, 3) points along which they move least, lying lengthwise."""
    depth = np.linalg.eigh(motion.T @ motion)[1][:, 0]
    depth = depth if depth.sum() > 0 else -depth
    length = np.linalg.svd(points - points.mean(0), full_matrices=False)[2][0]
    across = length - depth * (length @ depth)
    # Where the molecule's length is the direction in which it moves least, any other direction.
    across = across if np.linalg.norm(across) > 0.1 else np.linalg.svd(depth[None])[2][1]
    across = across / np.linalg.norm(across)
    return np.stack([across, np.cross(depth, across), depth])


def crop_to_density(volume: np.ndarray) -> tuple[slice, slice, slice]:
    """Return the part of a cubic [z, y, x] volume that holds its density, with a margin of two voxels."""
    strong = volume > 0.04 * volume.max()
    parts = []
    for axis in range(3):
        where = np.flatnonzero(strong.any(tuple(i for i in range(3) if i != axis)))
        parts.append(slice(max(0, where[0] - 2), min(len(volume), where[-1] + 3)))
    return parts[0], parts[1], parts[2]


def contour_level(volume: np.ndarray, top: float) -> float:
    """Return the contour level, as a fraction of `top`, that encloses most of the density's integral."""
    values = np.sort(volume[volume > 0.02 * top])[::-1]
    if not len(values):
        return 0.3
    enclosed = np.cumsum(values)
    return float(values[np.searchsorted(enclosed, _ENCLOSED * enclosed[-1])] / top)
