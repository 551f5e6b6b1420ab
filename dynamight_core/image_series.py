"""Particles of several images (tilt series): which images show which particle."""

from functools import cached_property

import torch


class ImageSeries:
    """Which of n images show which of P particles.

    Wherever there may be one, None stands for particles of one image each: image and particle have the same number.

    Parameters
    ----------
    owner
        (n,) int64 particle of each image, from 0 to P - 1; every particle has an image.
    """

    def __init__(self, owner: torch.Tensor):
        self.owner = owner.cpu()
        self.counts = torch.bincount(self.owner)
        self._order = torch.argsort(self.owner, stable=True)
        self._starts = self.counts.cumsum(0) - self.counts

    @classmethod
    def of_names(cls, codes: torch.Tensor) -> "ImageSeries":
        """Return the series of images of equal (n,) numbers; particles are numbered in the order of first images."""
        _, inverse = codes.unique(return_inverse=True)
        first = torch.full((int(inverse.max()) + 1,), len(codes)).scatter_reduce_(
            0, inverse, torch.arange(len(codes)), "amin"
        )
        return cls(first.argsort().argsort()[inverse])

    def __len__(self) -> int:
        """Return the number of particles."""
        return len(self.counts)

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(self.owner)

    @cached_property
    def first(self) -> torch.Tensor:
        """(P,) the first image of each particle."""
        return self._order[self._starts]

    @cached_property
    def rank(self) -> torch.Tensor:
        """(n,) number of each image among those of its particle, from 0."""
        rank = torch.empty_like(self._order)
        rank[self._order] = torch.arange(self.n_images) - self._starts[self.owner[self._order]]
        return rank

    def images(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the (b,) images of (p,) particles, one particle after the other, and (b,) whose of the p each is."""
        rows = rows.cpu()
        counts = self.counts[rows]
        index = torch.repeat_interleave(torch.arange(len(counts)), counts)
        within = torch.arange(len(index)) - (counts.cumsum(0) - counts)[index]
        return self._order[self._starts[rows][index] + within], index

    def at_once(self, number: int) -> int:
        """Return how many particles have about a number of images, at least one."""
        return max(1, number * len(self) // self.n_images)


def images_of(series: ImageSeries | None, rows: torch.Tensor) -> torch.Tensor:
    """Return the (b,) images of (p,) particles."""
    return rows if series is None else series.images(rows)[0]


def per_image(series: ImageSeries | None, values: torch.Tensor) -> torch.Tensor:
    """Return (n, ...) the values of each image's particle, from those (P, ...) of particles."""
    return values if series is None else values[series.owner.to(values.device)]


def per_particle(series: ImageSeries | None, values: torch.Tensor) -> torch.Tensor:
    """Return the (P, ...) sums over each particle's images of (n, ...) values."""
    if series is None:
        return values
    sums = values.new_zeros(len(series), *values.shape[1:])
    return sums.index_add_(0, series.owner.to(values.device), values)


def at_once(series: ImageSeries | None, number: int) -> int:
    """Return how many particles have about a number of images, at least one."""
    return number if series is None else series.at_once(number)
