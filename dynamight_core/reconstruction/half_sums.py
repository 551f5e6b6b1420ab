"""The sums over the particles of both half-sets, and the half-maps solved from them."""

import torch

from dynamight_core.image_series import at_once
from dynamight_core.imaging.fourier import resample_volume
from dynamight_core.imaging.modes import Modes
from dynamight_core.options import ReconstructOptions
from dynamight_core.particles.memory import available_memory
from dynamight_core.reconstruction.checks import check_views
from dynamight_core.reconstruction.competition import Choice, Neighbourhood, compete, densities
from dynamight_core.reconstruction.deformation import deforming_region, half_modes, in_conformation
from dynamight_core.reconstruction.half_map import MIN_REGULARISATION, HalfReconstruction
from dynamight_core.reconstruction.images import FullImages
from dynamight_core.reconstruction.local import mobile_points, moving_part
from dynamight_core.reporter import Reporter
from dynamight_core.run import Run

# Images of the other half-set that decide when least squares stops.
HELD_OUT = 100


class HalfSums:
    """The sums over the particles of both half-sets, each through its motion, and the maps solved from them.

    Parameters
    ----------
    run, options
        of the reconstruction; the conformation is not "auto".
    images
        of the run.
    reporter
        receives messages and progress.
    neighbourhood
        of the conformation; None if densities do not compete.

    Attributes
    ----------
    modes
        of each half-set, the motion that is applied.
    moving
        (box, box, box) soft mask of the moving part in the particles' box, None if nothing moves.
    """

    def __init__(
        self,
        run: Run,
        options: ReconstructOptions,
        images: FullImages,
        reporter: Reporter,
        neighbourhood: Neighbourhood | None = None,
    ):
        self.run, self.options, self._reporter, self._neighbourhood = run, options, reporter, neighbourhood
        self.halves: list[HalfReconstruction] = []
        self.modes: list[Modes] = []
        self._competing: list[torch.Tensor] = []
        self.moving: torch.Tensor | None = None
        weights = images.noise_weights(options.seed)
        for half in (1, 2):
            modes, support = half_modes(run, half, images, options)
            if support is not None:
                reporter.say(support.sentence(half))
            self.modes.append(modes)
            rows = torch.where(run.halves == half)[0]
            mobile = mobile_points(modes, rows, run.models[half - 1].consensus_positions) if len(modes) else None
            modes, points = in_conformation(run, half, modes, options.conformation)
            region = deforming_region(points, images.box, images.pixel_size, options.region_radius)
            if mobile is not None:
                moving = moving_part(points, mobile, run.particles.box, run.particles.pixel_size)
                self.moving = moving if self.moving is None else torch.maximum(self.moving, moving)
            groups = None if neighbourhood is None else neighbourhood.groups(rows)
            errors = torch.tensor(run.table["dynMotionError"].to_numpy()) if options.error_weights else None
            summed = HalfReconstruction.of(
                images.data(weights, errors),
                rows,
                modes,
                region,
                options.batch_size,
                reporter.step(f"reconstructing, half {half}"),
                available_memory() // 4,
                groups=groups,
            )
            if neighbourhood is not None and groups is not None:
                self._competing.append(neighbourhood.maps(groups, summed.parts))
                summed.parts = []
            self.halves.append(summed)
            if summed.kernel is not None:
                check_views(summed.denominator, half, images.pixel_size, reporter)

    @property
    def views_are_uneven(self) -> bool:
        """Whether a half-set lacks directions, or has many more views in some than in others."""
        return any(half.kernel is not None for half in self.halves)

    def maps(
        self, method: str, regularisation: torch.Tensor | float, choice: Choice | None, rigid: bool
    ) -> dict[bool, tuple[torch.Tensor, torch.Tensor]]:
        """Return both half-maps by whether motion is used, those without it only on request."""
        maps = {True: self._solved(method, regularisation, True)}
        if rigid or choice is not None:
            maps[False] = self._solved(method, regularisation, False)
        if choice is not None:
            maps[True] = self._blended(choice, maps[False], maps[True])
        return maps if rigid else {True: maps[True]}

    def first_maps(self, choice: Choice | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both half-maps with motion used, before their signal-to-noise is known."""
        given = self.options.regularisation
        return self.maps("wbp", MIN_REGULARISATION if given is None else given, choice, False)[True]

    def _solved(
        self, method: str, regularisation: torch.Tensor | float, deformed: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both half-maps of all particles in the particles' box."""
        if method == "wbp":
            first, second = (self._resampled(half.backprojected(regularisation, deformed)) for half in self.halves)
            return first, second
        maps = []
        for number, half in enumerate(self.halves, 1):
            name = "least squares" if deformed else "rigid least squares"
            others = torch.where(self.run.halves != number)[0]
            volume, solution = half.least_squares(
                regularisation,
                others[:: max(1, len(others) // at_once(half.data.series, HELD_OUT))],
                deformed,
                self.options.steps,
                self.options.batch_size,
                self._reporter.step(f"{name}, half {number}"),
            )
            self._reporter.say(
                f"Half-set {number}, {name}: {solution.steps} steps improved the fit to held-out images."
            )
            maps.append(self._resampled(volume))
        return maps[0], maps[1]

    def choice(self, method: str) -> Choice | None:
        """Return the densities that the map has around each voxel, None if densities do not compete.

        Maps of near particles are backprojections by the kernel of even views: they do not take part by other methods.
        """
        if self._neighbourhood is None:
            return None
        near = method == "wbp" and not self.views_are_uneven
        competing = densities(len(self._neighbourhood.bandwidths), near)
        region = torch.maximum(*(half.region.cpu() for half in self.halves))
        first, second = self._competing
        weights = compete(first, second, competing, region, self.halves[0].data.pixel_size)
        weights = torch.stack([self._resampled(each) for each in weights])
        return Choice(self._neighbourhood, competing, weights)

    def _blended(
        self,
        choice: Choice,
        rigid: tuple[torch.Tensor, torch.Tensor],
        corrected: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both half-maps of the densities chosen, given those of all particles."""
        maps = []
        for competing, pair in zip(self._competing, zip(rigid, corrected, strict=True), strict=True):
            total = choice.weights[0] * pair[0] + choice.weights[1] * pair[1]
            for weight, each in zip(choice.weights[2:], choice.competing[2:], strict=True):
                if weight.max() > 0:
                    total += weight * self._resampled(competing[each.bandwidth, int(each.corrected)])
            maps.append(total)
        return maps[0], maps[1]

    def _resampled(self, volume: torch.Tensor) -> torch.Tensor:
        return resample_volume(volume.cpu(), self.run.particles.box)
