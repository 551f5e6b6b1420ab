"""Uneven views: the kernel of a whole box, and the map that explains a backprojection through it.

Without motion, the numerator of `backprojection` is the map convolved with a kernel, known inside the sphere inscribed
in the box. If most views are near one direction, the kernel is long: along that direction it hardly fades. A filter on
the grid of the map takes the numerator to be periodic and the kernel to fade within half the box, so that directions
with many views leak into the others. Here, the kernel is known for all differences of two voxels, and

    (S K S + R) f = n

is solved for the map f by conjugate gradients, with the numerator n, the sphere S, the regularisation R, and the
convolution K on a grid of twice the box, where no end of the box meets another.

Leakage reaches a few Fourier voxels, and at a large radius the directions that far away have about as many views. So
only low frequencies are solved for, on a grid of limited size, whose cost does not grow with the box. Above, the
numerator is divided by its denominator.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from dynamight_core.groups import current_group
from dynamight_core.imaging.backprojection import ParticleData, denominator_floor, filter_volume
from dynamight_core.imaging.conjugate_gradients import conjugate_gradients
from dynamight_core.imaging.fourier import expand_shells, resample_volume, resize_fourier, shells, volume_to_fourier
from dynamight_core.imaging.masks import raised_cosine
from dynamight_core.imaging.slices import SliceSums

# Views are uneven if the denominator varies by more than this fraction of its mean, at this shell or a quarter of the
# box: uniform views of 150 particles vary by half of it, and of 1,000 by a fifth.
_UNEVEN, _SHELL = 0.6, 16
# A direction is missing if the denominator there is below this fraction of its mean; this percentage may be.
_SEEN, MAX_MISSING = 0.05, 3.0
# Largest grid of the map that is solved for, voxels. Above its last shells (width in shells) there is division.
_LARGEST, _EDGE = 96, 4
# Steps of conjugate gradients at most, and the residual at which they stop, as a fraction of the numerator.
_STEPS, EXACT, ROUGH = 20, 3e-3, 0.1


def missing_directions(denominator: torch.Tensor) -> float:
    """Return the percentage of directions that almost no slice crosses at half of Nyquist; argument as below."""
    box = len(denominator)
    values = denominator[shells(box, 3, denominator.device) == box // 4]
    return 100 * float((values < _SEEN * values.mean()).float().mean())


def views_are_uneven(denominator: torch.Tensor) -> bool:
    """Return whether directions have so different numbers of views that a `WideKernel` is needed.

    Parameters
    ----------
    denominator
        (box, box, box//2+1) of `fourier_denominator`.
    """
    box = len(denominator)
    values = denominator[shells(box, 3, denominator.device) == min(_SHELL, box // 4)]
    return bool(values.std() > _UNEVEN * values.mean()) or missing_directions(denominator) > MAX_MISSING


@dataclass(frozen=True)
class WideKernel:
    """The kernel of particles without motion, for all differences of two voxels of a box.

    Parameters
    ----------
    transform
        (2 size, 2 size, size + 1) real, of the kernel on a grid of twice `size` voxels, which are as wide as two boxes.
        Some values may be negative, because the kernel ends with the grid.
    box
        voxels of the map.
    """

    transform: torch.Tensor
    box: int

    @classmethod
    def of(cls, data: ParticleData, indices: torch.Tensor, batch_size: int = 32) -> "WideKernel":
        """Sum the point spreads of (p,) particles, divided among the group of processes. Reads no images."""
        batches = current_group().split(indices, batch_size)
        return cls.summed(((data.matrices(rows), data.power(data.transfer(rows))) for rows in batches), data.box)

    @classmethod
    @torch.no_grad()
    def summed(cls, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], box: int) -> "WideKernel":
        """Sum the point spreads of batches of particles, those of all processes of the group.

        Parameters
        ----------
        batches
            of (b, 2 or 3, 3) ``x_image = A x_volume``, and (b, box, box//2+1) weighted squared transfer functions, zero
            beyond Nyquist.
        box
            pixels of the images.
        """
        size, sums = min(box, _LARGEST), None
        for matrices, whole in batches:
            sums = SliceSums(size, whole.device, 2 * size) if sums is None else sums
            power = resize_fourier(whole, box, size)
            # The image's channels are not used.
            sums.add(matrices[:, :2], power.to(torch.complex64), power)
        assert sums is not None, "a process of the group has no particles"
        current_group().sum_(sums.sums)
        # In units of the kernel on the grid of the map, whose voxels and pixels are smaller.
        return cls(volume_to_fourier(sums.point_spread()).real * (box / size), box)

    @property
    def size(self) -> int:
        """Voxels along an axis of the map that is solved for, which is as wide as the box."""
        return len(self.transform) // 2

    def __add__(self, other: "WideKernel") -> "WideKernel":
        """Return the kernel of both sets of particles."""
        return WideKernel(self.transform + other.transform, self.box)

    @torch.no_grad()
    def solve(
        self,
        numerator: torch.Tensor,
        denominator: torch.Tensor,
        regularisation: torch.Tensor,
        inside: torch.Tensor,
        tolerance: float = EXACT,
    ) -> torch.Tensor:
        """Return the (box, box, box) map that was convolved, damped by the regularisation.

        Parameters
        ----------
        numerator
            (box, box, box).
        denominator
            (box, box, box//2+1) of the same particles, for high frequencies.
        regularisation
            (box//2+1,), as a fraction of the mean denominator of each shell.
        inside
            (box, box, box) bool; the numerator is zero elsewhere, and so is the map.
        tolerance
            residual that is left, as a fraction of the numerator.
        """
        box, size = self.box, self.size
        if size == box:
            return self._solve(numerator, regularisation, inside, tolerance)
        at = (torch.arange(size) * (box / size)).round().long()
        low = self._solve(
            resample_volume(numerator, size), regularisation[: size // 2 + 1], inside[at][:, at][:, :, at], tolerance
        )
        floor = expand_shells(denominator_floor(denominator, regularisation), box, 3)
        divided = filter_volume(numerator, 1 / (denominator + floor))
        radius = torch.arange(box // 2 + 1, device=numerator.device)
        edge = raised_cosine((radius - (size // 2 - 1 - _EDGE)) / _EDGE)
        return divided + filter_volume(resample_volume(low, box) - divided, expand_shells(edge, box, 3))

    def _solve(
        self, numerator: torch.Tensor, regularisation: torch.Tensor, inside: torch.Tensor, tolerance: float
    ) -> torch.Tensor:
        size, grid = self.size, 2 * self.size
        # Shells of this grid are half as wide.
        fine = regularisation[(torch.arange(size + 1, device=numerator.device) + 1) // 2]
        positive = self.transform.clamp(min=0)
        penalty = expand_shells(denominator_floor(positive, fine), grid, 3)

        def convolved(values: torch.Tensor, transfer: torch.Tensor) -> torch.Tensor:
            transform = torch.fft.rfftn(values, s=(grid,) * 3) * transfer
            result: torch.Tensor = torch.fft.irfftn(transform, s=(grid,) * 3)[:size, :size, :size] * inside
            return result

        system, inverse = self.transform + penalty, 1 / (positive + penalty)
        target = numerator * inside
        values, limit = torch.zeros_like(target), tolerance * target.norm()
        steps = conjugate_gradients(
            lambda values: convolved(values, system), lambda values: convolved(values, inverse), target, values
        )
        for _, (found, residual) in zip(range(_STEPS if limit > 0 else 0), steps, strict=False):
            values = found
            if residual.norm() < limit:
                break
        return values
