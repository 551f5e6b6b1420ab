"""The likelihood of particles in one conformation, as a function of its map.

By central slices, the data term of particles with one density is quadratic in its transform F:

    sum_i 1/2 |CTF_i S_i F - y_i|^2 / Sigma = sum_k 1/2 D(k) |F(k)|^2 - Re F*(k) N(k) + constant,

S_i being the slice of particle i, and D and N the sums of slices of |CTF|^2 / Sigma and of CTF* y / Sigma. Once these
are summed, the likelihood of any density costs one Fourier transform, however many particles there are.
"""

from dataclasses import dataclass

import torch

from dynamight_core.imaging.fourier import (
    expand_shells,
    fourier_to_volume,
    plane_multiplicity,
    real_transform,
    resample_volume,
    shell_means,
    shells,
    volume_to_fourier,
)
from dynamight_core.imaging.slices import SliceSums

# Nyquist of the grid as a fraction of the low-pass filter: finer, so that Gaussians spread on it alias less.
_FINER = 0.75
# Fraction of the shell mean that is added to the denominator of a map.
_FLOOR = 0.2


@dataclass(frozen=True)
class MapLikelihood:
    """The data term of particles in one conformation, per particle, low-pass filtered.

    Parameters
    ----------
    numerator
        (box, box, box//2+1) complex, with the origin of real space at index 0 of each axis.
    denominator
        (box, box, box//2+1).
    """

    numerator: torch.Tensor
    denominator: torch.Tensor

    @classmethod
    def of(cls, sums: SliceSums, particles: int, pixel_size: float, resolution: float) -> "MapLikelihood":
        """Return the likelihood of summed particles on the coarsest grid that has its frequencies.

        Parameters
        ----------
        sums
            of images times CTF* / Sigma, and of |CTF|^2 / Sigma.
        particles
            number of particles in the sums.
        pixel_size
            of the images, A.
        resolution
            A, where the low-pass filter falls to 1/e.
        """
        extent = sums.box * pixel_size
        box = likelihood_box(sums.box, pixel_size, resolution)
        radius = shells(box, 3, sums.device)
        inside = (radius > 0) & (radius < box // 2)
        weights = torch.exp(-((radius / extent * resolution) ** 4)) * inside * plane_multiplicity(box, sums.device)
        # A slice's sum over its pixels is the sum over voxels of the transform over their number along an axis.
        weights = weights * ((sums.box / box) ** 3 / (sums.box * particles))
        numerator = real_transform(resample_volume(sums.images(), box), 3)
        denominator = volume_to_fourier(resample_volume(sums.point_spread(), box)).real.clamp(min=0)
        return cls(numerator * weights, denominator * weights)

    def energy(self, transform: torch.Tensor) -> torch.Tensor:
        """Return minus the log-likelihood of a (box, box, box//2+1) transform, nats per particle, up to a constant."""
        quadratic = 0.5 * (self.denominator * (transform.real.square() + transform.imag.square())).sum()
        linear = (transform.real * self.numerator.real + transform.imag * self.numerator.imag).sum()
        return quadratic - linear

    def best_scale(self, transform: torch.Tensor) -> float:
        """Return the factor of a (box, box, box//2+1) transform with the highest likelihood."""
        power = (self.denominator * transform.abs().square()).sum()
        return float((transform.conj() * self.numerator).real.sum() / power.clamp(min=1e-12))


def likelihood_box(box: int, pixel_size: float, resolution: float) -> int:
    """Return the size of the grid of a `MapLikelihood` of images of `box` pixels."""
    return min(box, 2 * -int(-box * pixel_size // (_FINER * resolution)))


def solved_map(sums: SliceSums) -> torch.Tensor:
    """Return the (box, box, box) map of summed particles, [z, y, x]."""
    denominator = volume_to_fourier(sums.point_spread()).real.clamp(min=0)
    floor = _FLOOR * expand_shells(shell_means(denominator, sums.box, 3), sums.box, 3)
    inside = shells(sums.box, 3, sums.device) < sums.box // 2
    return fourier_to_volume(volume_to_fourier(sums.images()) / (denominator + floor) * inside, sums.box)
