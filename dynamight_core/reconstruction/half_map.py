"""One half-map: the same particles with and without deformation, by weighted backprojection or least squares."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dynamight_core.imaging.backprojection import (
    BackprojectionSums,
    ParticleData,
    accumulate,
    fourier_denominator,
    solve,
)
from dynamight_core.imaging.fourier import expand_shells, fourier_to_volume, volume_to_fourier
from dynamight_core.reconstruction.least_squares import DeformedProjection, LeastSquares, least_squares
from dynamight_core.reconstruction.modes import Modes

# Most noise over signal that regularisation goes by.
_MOST_SHARE = 3.0
# Least that a weighted backprojection is regularised by, and without knowing better.
LEAST_SHARE = 0.3

Progress = Callable[[int, int], None]


@dataclass
class HalfReconstruction:
    """The sums of one half's particles, from which its maps are solved.

    Parameters
    ----------
    data
        images, transfer functions and poses.
    indices
        (p,) particles of the half.
    modes
        their deformations, None where nothing moves.
    region
        (box, box, box) weights of the displacement.
    sums
        of the backprojections.
    denominator
        (box, box, box//2+1).
    """

    data: ParticleData
    indices: torch.Tensor
    modes: Modes | None
    region: torch.Tensor
    sums: BackprojectionSums
    denominator: torch.Tensor

    @classmethod
    def of(
        cls,
        data: ParticleData,
        indices,
        modes: Modes | None,
        region,
        batch_size: int = 32,
        progress: Progress | None = None,
        memory: int = 2**30,
        denominator: torch.Tensor | None = None,
    ) -> "HalfReconstruction":
        """Sum the particles; a `denominator` of the same particles spares a part of it."""
        moving = modes is not None and len(modes) > 0
        sums = accumulate(
            data,
            indices,
            field=modes.field if moving else None,
            latents=modes.coordinates if moving else None,
            region=region,
            kernel=denominator is None,
            batch_size=batch_size,
            progress=progress,
            memory=memory,
        )
        if denominator is None:
            denominator = fourier_denominator(sums.kernel)
        # Only its transform is needed from here on.
        sums.kernel = None
        return cls(data, indices, modes if moving else None, region, sums, denominator)

    def backprojected(self, regularisation, deformed: bool = True) -> torch.Tensor:
        """Return the (box, box, box) weighted backprojection, with or without deformation.

        A curve is raised to a least share: where views are missing, a filter by strong shells' signal-to-noise alone
        amplifies what leaks there from elsewhere.
        """
        if torch.is_tensor(regularisation):
            regularisation = regularisation.clamp(min=LEAST_SHARE)
        return solve(self.sums.numerator if deformed else self.sums.rigid, self.denominator, regularisation)

    def least_squares(
        self,
        regularisation,
        held_out: torch.Tensor,
        deformed: bool = True,
        most_steps: int = 8,
        batch_size: int = 32,
        progress: Progress | None = None,
    ) -> tuple[torch.Tensor, LeastSquares]:
        """Return the (box, box, box) least-squares map around the molecule in the backprojected solvent.

        Parameters
        ----------
        regularisation
            one number or (box//2+1,), as `solve` takes it.
        held_out
            particles that are not in the sums; the steps end where their residual no longer falls.
        """
        modes = self.modes if deformed else None
        field, coordinates = (None, None) if modes is None else (modes.field, modes.coordinates)
        operator = DeformedProjection(self.data, self.region, field, coordinates, batch_size)
        # Slices are summed by another operator, close but not the same.
        numerator = self.sums.numerator if deformed else operator.numerator(self.indices, batch_size)
        solution = least_squares(
            operator,
            numerator,
            self.denominator,
            regularisation,
            self.indices,
            lambda values: operator.residuals(values, held_out, batch_size),
            most_steps=most_steps,
            batch_size=batch_size,
            progress=progress,
        )
        box = len(numerator)
        shares = torch.as_tensor(regularisation, dtype=torch.float32).to(numerator.device).expand(box // 2 + 1)
        # The solution is damped by 1 / (1 + share) where the denominator is at its mean; half-maps are unfiltered.
        undamped = fourier_to_volume(volume_to_fourier(solution.volume) * expand_shells(1 + shares, box, 3), box)
        solvent = self.backprojected(regularisation, deformed)
        return torch.lerp(solvent, undamped, self.region.to(solvent).float()), solution


def shares_from_fsc(fsc: torch.Tensor) -> torch.Tensor:
    """Return (box//2+1,) noise over signal power of half-maps with this FSC, as RELION's tau: R as a share.

    From the first shell without correlation on there is no signal. Beyond a noise of some times the signal a larger
    share changes nothing but the scale of the map, which is undone; least squares would lose digits by it.
    """
    curve = fsc.nan_to_num(nan=0.0).clamp(0, 0.999)
    curve = curve * (curve > 0).int().cumprod(0)
    curve[0] = 0.999
    return ((1 - curve) / curve.clamp(min=1e-3)).clamp(max=_MOST_SHARE)
