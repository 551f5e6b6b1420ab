"""Half-sets and validation particles; relatives (see `relatives`) stay together wherever they are drawn."""

import numpy as np
import torch
from numpy.typing import NDArray

from dynamight_core.errors import InputError
from dynamight_core.particles.metadata import Particles


def assign_halves(particles: Particles, relatives: torch.Tensor, seed: int) -> tuple[torch.Tensor, bool]:
    """Return the half-set of each particle.

    They are those of rlnRandomSubset. If the file lacks the column, whole groups of relatives are split at random into
    two halves of the same size (up to one group).

    Parameters
    ----------
    particles
        with `halves` 1 and 2, or all 0.
    relatives
        (n,) numbers of groups of relatives.
    seed
        of the random split.

    Returns
    -------
    tuple
        (n,) int8 half-sets 1 and 2, and whether they were split at random.

    Raises
    ------
    InputError
        if a half has no particles, or rows of one image are in different halves.
    """
    halves, groups = particles.halves, particles.copies
    if not halves.any():
        first = _draw_groups(relatives.numpy(), len(groups) / 2, np.random.default_rng([seed, 0]))
        halves = torch.from_numpy(np.where(first, 1, 2).astype(np.int8))
        if first.all() or not first.any():
            raise InputError(
                f"all particles of {particles.star_path} are relatives (one image, tube or place), which cannot "
                "be split in halves; give more, or add the column rlnRandomSubset"
            )
        return halves, True
    for half in (1, 2):
        if not (halves == half).any():
            raise InputError(
                f"{particles.star_path} has no particle with rlnRandomSubset {half}; give both half-sets, "
                "or remove the column for a random split"
            )
    both = torn(halves, groups)
    if both.any():
        row = int((both & (halves == 2)).int().argmax())
        raise InputError(
            f"{particles.star_path} has image {particles.name(row)} (row {row + 1}) in both half-sets "
            "of rlnRandomSubset; give all rows of an image the same value"
        )
    return halves.clone(), False


def torn(halves: torch.Tensor, relatives: torch.Tensor) -> torch.Tensor:
    """Return the (n,) mask of particles with relatives in the other half-set; `relatives` are their groups."""
    first, last = _halves_of_groups(halves, relatives)
    return (first != last)[relatives]


def _halves_of_groups(halves: torch.Tensor, relatives: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the lowest and the highest half-set of each group."""
    n, values = int(relatives.max()) + 1, halves.long()
    low = torch.full((n,), 2).scatter_reduce_(0, relatives, values, "amin")
    return low, torch.zeros(n, dtype=torch.int64).scatter_reduce_(0, relatives, values, "amax")


def choose_validation(halves: torch.Tensor, relatives: torch.Tensor, fraction: float, seed: int) -> torch.Tensor:
    """Return the (n,) mask of held-out (validation) particles.

    Parameters
    ----------
    halves
        (n,) 1 and 2.
    relatives
        (n,) numbers of groups of relatives, which are chosen together, also if they are in both half-sets.
    fraction
        of the particles of each half, from 0 to below 1.
    seed
        of the random choice.
    """
    chosen = np.zeros(len(halves), dtype=bool)
    # A group in both half-sets is drawn with the first.
    drawn_with = _halves_of_groups(halves, relatives)[0][relatives].numpy()
    for half in (1, 2):
        rows = np.flatnonzero(drawn_with == half)
        # Each half has its own random stream: its choice does not depend on the other half.
        generator = np.random.default_rng([seed, half])
        chosen[rows] = _draw_groups(relatives.numpy()[rows], fraction * len(rows), generator)
    return torch.from_numpy(chosen)


def _draw_groups(groups: NDArray[np.int64], n_rows: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Return the (n,) mask of randomly drawn whole groups with `n_rows` rows in total, to the nearest group."""
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = generator.permutation(len(sizes))
    middle = np.cumsum(sizes[order]) - sizes[order] / 2
    drawn = np.zeros(len(sizes), dtype=np.bool_)
    drawn[order[middle < n_rows]] = True
    mask: NDArray[np.bool_] = drawn[group.ravel()]
    return mask
