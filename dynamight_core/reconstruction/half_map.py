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

# Limits of the regularisation, noise over signal power. The lower one is for weighted backprojection alone, and its
# default before an FSC is known.
_MAX_REGULARISATION = 3.0
MIN_REGULARISATION = 0.3


@dataclass
class HalfReconstruction:
    """The sums over a half-set's particles, from which its maps are solved.

    Parameters
    ----------
    data
        images, transfer functions and poses.
    indices
        (p,) particles of the half-set.
    modes
        their deformations, None if nothing moves.
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
        indices: torch.Tensor,
        modes: Modes | None,
        region: torch.Tensor,
        batch_size: int = 32,
        progress: Callable[[int, int], None] | None = None,
        memory: int = 2**30,
        denominator: torch.Tensor | None = None,
    ) -> "HalfReconstruction":
        """Sum the particles; a known `denominator` of the same particles saves part of the work."""
        if modes is not None and not len(modes):
            modes = None
        sums = accumulate(
            data,
            indices,
            field=None if modes is None else modes.field,
            latents=None if modes is None else modes.coordinates,
            region=region,
            kernel=denominator is None,
            batch_size=batch_size,
            progress=progress,
            memory=memory,
        )
        if sums.kernel is not None:
            denominator = fourier_denominator(sums.kernel)
            # Only its transform is needed from here on.
            sums.kernel = None
        assert denominator is not None
        return cls(data, indices, modes, region, sums, denominator)

    def backprojected(self, regularisation: torch.Tensor | float, deformed: bool = True) -> torch.Tensor:
        """Return the (box, box, box) weighted backprojection, with or without deformation.

        A curve is limited to `MIN_REGULARISATION`: in missing directions, a weaker filter of strong shells would
        amplify leakage from other directions.
        """
        if isinstance(regularisation, torch.Tensor):
            regularisation = regularisation.clamp(min=MIN_REGULARISATION)
        return solve(self.sums.numerator if deformed else self.sums.rigid, self.denominator, regularisation)

    def least_squares(
        self,
        regularisation: torch.Tensor | float,
        held_out: torch.Tensor,
        deformed: bool = True,
        max_steps: int = 8,
        batch_size: int = 32,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[torch.Tensor, LeastSquares]:
        """Return the (box, box, box) least-squares map of the region, with backprojected solvent around it.

        Parameters
        ----------
        regularisation
            one number or (box//2+1,), as for `solve`.
        held_out
            particles that are not in the sums; the solver stops when their residual no longer falls.
        """
        modes = self.modes if deformed else None
        field, coordinates = (None, None) if modes is None else (modes.field, modes.coordinates)
        operator = DeformedProjection(self.data, self.region, field, coordinates, batch_size)
        # `rigid` is summed by slices: close to the adjoint of `operator`, but not exact.
        numerator = self.sums.numerator if deformed else operator.numerator(self.indices, batch_size)
        solution = least_squares(
            operator,
            numerator,
            self.denominator,
            regularisation,
            self.indices,
            lambda values: operator.residuals(values, held_out, batch_size),
            max_steps=max_steps,
            batch_size=batch_size,
            progress=progress,
        )
        box = len(numerator)
        curve = torch.as_tensor(regularisation, dtype=torch.float32).to(numerator.device).expand(box // 2 + 1)
        # At the mean denominator, regularisation R damps the solution by 1 / (1 + R); half-maps are unfiltered.
        undamped = fourier_to_volume(volume_to_fourier(solution.volume) * expand_shells(1 + curve, box, 3), box)
        solvent = self.backprojected(regularisation, deformed)
        return torch.lerp(solvent, undamped, self.region.to(solvent).float()), solution


def noise_to_signal(fsc: torch.Tensor) -> torch.Tensor:
    """Return the (box//2+1,) ratio of noise to signal power in half-maps with this FSC (RELION's tau).

    From the first shell without correlation on, there is no signal. The ratio is limited: a larger one would only
    change the scale of the map, which is undone, and least squares would lose digits.
    """
    curve = fsc.nan_to_num(nan=0.0).clamp(0, 0.999)
    curve = curve * (curve > 0).int().cumprod(0)
    curve[0] = 0.999
    return ((1 - curve) / curve.clamp(min=1e-3)).clamp(max=_MAX_REGULARISATION)
