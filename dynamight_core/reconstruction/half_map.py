"""One half-map: the same particles with and without deformation, by weighted backprojection or least squares."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add

import torch

from dynamight_core.image_series import images_of
from dynamight_core.imaging.backprojection import (
    BackprojectionSums,
    ParticleData,
    accumulate_groups,
    denominator_floor,
    filter_volume,
    fourier_denominator,
    solve,
)
from dynamight_core.imaging.fourier import expand_shells
from dynamight_core.imaging.masks import sphere
from dynamight_core.imaging.modes import Modes
from dynamight_core.imaging.wide_kernel import EXACT, ROUGH, WideKernel, views_are_uneven
from dynamight_core.reconstruction.least_squares import DeformedProjection, LeastSquares, least_squares

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
        (p,) images of the half-set.
    modes
        deformations of images, None if nothing moves.
    region
        (box, box, box) weights of the displacement.
    sums
        of the backprojections.
    denominator
        (box, box, box//2+1).
    kernel
        of the particles, if their views are uneven.
    parts
        the sums of groups of the particles, if these were requested, with their kernels.
    """

    data: ParticleData
    indices: torch.Tensor
    modes: Modes | None
    region: torch.Tensor
    sums: BackprojectionSums
    denominator: torch.Tensor
    kernel: WideKernel | None
    parts: list[BackprojectionSums] = field(default_factory=list)

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
        known: "HalfReconstruction | None" = None,
        groups: Sequence[torch.Tensor] | None = None,
    ) -> "HalfReconstruction":
        """Sum the particles; one that is `known`, of the same images and other modes, saves part of the work.

        `groups` divide the particles into those whose sums are also kept by themselves.
        """
        modes = None if modes is None or not len(modes) else modes.of_images(data.series)
        indices = images_of(data.series, indices)
        if groups is not None:
            groups = [images_of(data.series, group) for group in groups]
        field, latents = (None, None) if modes is None else modes.moved_by
        parts = accumulate_groups(
            data,
            [indices] if groups is None else groups,
            field=field,
            latents=latents,
            region=region,
            known=None if known is None else known.sums,
            batch_size=batch_size,
            progress=progress,
            memory=memory,
        )
        sums = replace(reduce(add, parts))
        if known is not None:
            return cls(data, indices, modes, region, sums, known.denominator, known.kernel)
        assert sums.kernel is not None
        denominator = fourier_denominator(sums.kernel)
        # Only its transform is needed from here on.
        sums.kernel = None
        kernel = WideKernel.of(data, indices, batch_size) if views_are_uneven(denominator) else None
        kept = [] if groups is None else parts
        return cls(data, indices, modes, region, sums, denominator, kernel, kept)

    def __add__(self, other: "HalfReconstruction") -> "HalfReconstruction":
        """Return the reconstruction of the same particles from disjoint Fourier pixels of both."""
        kernel = None if self.kernel is None or other.kernel is None else self.kernel + other.kernel
        return replace(
            self, sums=self.sums + other.sums, denominator=self.denominator + other.denominator, kernel=kernel
        )

    def backprojected(self, regularisation: torch.Tensor | float, deformed: bool = True) -> torch.Tensor:
        """Return the (box, box, box) weighted backprojection, with or without deformation.

        A curve is limited to `MIN_REGULARISATION`: in directions with few views, a weaker filter of strong shells would
        amplify leakage from other directions. Without motion, a known kernel removes the leakage; with motion, that
        kernel is not exact.
        """
        leaks = self.kernel is None or (deformed and self.modes is not None)
        if isinstance(regularisation, torch.Tensor) and leaks:
            regularisation = regularisation.clamp(min=MIN_REGULARISATION)
        numerator = self.sums.numerator if deformed else self.sums.rigid
        return self.filtered(numerator, regularisation)

    def filtered(self, numerator: torch.Tensor, regularisation: torch.Tensor | float) -> torch.Tensor:
        """Return the (box, box, box) map of a (box, box, box) numerator.

        Directions that few particles cover are damped instead of amplified, and empty shells stay empty. The map is
        multiplied by 1 + `regularisation` (a fraction of the denominator's shell means, one number or (box//2+1,)),
        which keeps grey values where the denominator equals its shell's mean: the map is not low-pass filtered.
        """
        if self.kernel is None:
            return solve(numerator, self.denominator, regularisation)
        inside = sphere(self.data.box, device=numerator.device)
        if self.modes is not None:
            inside |= (self.region > 0).to(inside.device)
        curve = self._curve(regularisation)
        return filter_volume(self._damped(numerator, curve, inside), expand_shells(1 + curve, self.data.box, 3))

    def _curve(self, regularisation: torch.Tensor | float) -> torch.Tensor:
        """Return the (box//2+1,) regularisation of every shell."""
        values = torch.as_tensor(regularisation, dtype=torch.float32, device=self.denominator.device)
        return values.expand(self.data.box // 2 + 1)

    def _damped(
        self, numerator: torch.Tensor, curve: torch.Tensor, inside: torch.Tensor, tolerance: float = EXACT
    ) -> torch.Tensor:
        """Return the (box, box, box) map of a numerator, damped by a regularisation.

        Parameters
        ----------
        numerator
            (box, box, box).
        curve
            (box//2+1,), as a fraction of the denominator's shell means.
        inside
            (box, box, box) bool, where the numerator is known.
        tolerance
            of `WideKernel.solve`.
        """
        if self.kernel is not None:
            return self.kernel.solve(numerator, self.denominator, curve, inside, tolerance)
        floor = expand_shells(denominator_floor(self.denominator, curve), self.data.box, 3)
        return filter_volume(numerator, 1 / (self.denominator + floor))

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
        curve = self._curve(regularisation)
        shape = operator.shape
        solution = least_squares(
            operator,
            numerator,
            denominator_floor(self.denominator, curve),
            lambda values: self._damped(operator.volume(values), curve, shape, ROUGH)[shape],
            self.indices,
            lambda values: operator.residuals(values, images_of(self.data.series, held_out), batch_size),
            max_steps=max_steps,
            batch_size=batch_size,
            progress=progress,
        )
        # At the mean denominator, regularisation R damps the solution by 1 / (1 + R); half-maps are unfiltered.
        undamped = filter_volume(solution.volume, expand_shells(1 + curve, self.data.box, 3))
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
