"""What is said of the maps of a reconstruction: FSC by region, residual motion, and the densities used."""

from collections.abc import Iterator
from pathlib import Path

import torch

from dynamight_core.files import header_origin
from dynamight_core.imaging.correlation import fourier_shell_correlation, fsc_deviation, resolution_at
from dynamight_core.imaging.modes import Modes
from dynamight_core.judging.bias import is_joint
from dynamight_core.options import ReconstructOptions
from dynamight_core.reconstruction.atomic_models import COLUMN
from dynamight_core.reconstruction.competition import Choice
from dynamight_core.reconstruction.deformation import model_map
from dynamight_core.reconstruction.fsc import half_map_fsc
from dynamight_core.reconstruction.maps import ReconstructionFiles, write_reconstruction
from dynamight_core.reconstruction.residual import conservative_fsc, motion_coherence, points_in_mask, residual_motion
from dynamight_core.run import Run

# The densities of a map: of all particles, with motion corrected or not, or those chosen around each voxel.
Used = bool | Choice
# Densities of less weight than this at all points are omitted.
_USED = 0.01


class Judgement:
    """Computes FSC curves in the mask and in regions, and writes maps with them.

    Parameters
    ----------
    run, options
        of the reconstruction.
    mask, regions
        in the particles' box; regions by name.
    gaussians
        (m, 3) of both half-sets in the frame of the maps, A.
    consensus
        map in the particles' box.
    modes
        of each half-set, the motion that is applied.
    atomic
        densities of atomic models by name, in the particles' box.
    """

    def __init__(
        self,
        run: Run,
        options: ReconstructOptions,
        mask: torch.Tensor,
        regions: dict[str, torch.Tensor],
        gaussians: list[torch.Tensor],
        consensus: torch.Tensor,
        modes: list[Modes],
        atomic: dict[str, torch.Tensor] | None = None,
    ):
        self._run, self._options, self.mask, self.regions = run, options, mask, regions
        self._gaussians, self._model, self._modes = gaussians, model_map(run, gaussians), modes
        self.atomic = atomic or {}
        self._deviations = {name: fsc_deviation(volume) for name, volume in regions.items()}
        self.with_consensus = fourier_shell_correlation(self._model, consensus, mask)

    def columns(self, pair: tuple[torch.Tensor, torch.Tensor], used: Used) -> dict[str, torch.Tensor]:
        """Return further columns of fsc.star for two half-maps; see `Used`."""
        average = (pair[0] + pair[1]) / 2
        named = {
            "dynModelConsensus": self.with_consensus,
            "dynModelMap": fourier_shell_correlation(self._model, average, self.mask),
        }
        for name, volume in self.regions.items():
            found = half_map_fsc(*pair, volume, self._options.seed)
            error, coherence = found.standard_error(self._deviations[name]), self._coherence(volume, used)
            named[f"dynRegion_{name}"] = found.corrected
            named[f"dynRegionAtLeast_{name}"] = conservative_fsc(found.corrected, error, coherence)
            named[f"dynRegionModel_{name}"] = fourier_shell_correlation(self._model, average, volume)
        for name, density in self.atomic.items():
            named[f"{COLUMN}{name}"] = fourier_shell_correlation(density, average, self.mask)
            for region, volume in self.regions.items():
                named[f"{COLUMN}{name}_{region}"] = fourier_shell_correlation(density, average, volume)
        return named

    def agreement(self, columns: dict[bool, dict[str, torch.Tensor]]) -> list[str]:
        """Return the mean FSC with each atomic model in words; keys of `columns` are whether motion is corrected."""
        lines = []
        for name in self.atomic:
            parts = []
            for region in (None, *self.regions):
                column = f"{COLUMN}{name}" if region is None else f"{COLUMN}{name}_{region}"
                means = {motion: float(found[column][1:].mean()) for motion, found in columns.items()}
                without = f" ({means[False]:.3f} without deformation)" if False in means else ""
                parts.append(f"{'' if region is None else f'in {region} '}{means[True]:.3f}{without}")
            lines.append(f"Mean FSC with the atomic model {name}: {'; '.join(parts)}.")
        return lines

    def write(
        self, to: Path, pair: tuple[torch.Tensor, torch.Tensor], columns: dict[str, torch.Tensor], used: Used
    ) -> ReconstructionFiles:
        """Write two half-maps and what follows from them to a folder, with the header origin of the consensus map."""
        run, options = self._run, self._options
        return write_reconstruction(
            to,
            *pair,
            run.particles.pixel_size,
            self.mask,
            columns,
            options.seed,
            options.b_factor,
            options.local_resolution,
            header_origin(run.config.inputs.map).tolist(),
            self._coherence(self.mask, used),
            "JOINT MODEL, CONTROL ONLY: " if is_joint(run) else "",
        )

    def resolutions(self, columns: dict[str, torch.Tensor], region: str) -> tuple[float, float]:
        """Return the resolution (A) in a region, and its conservative estimate."""
        box, pixel_size = self._run.particles.box, self._run.particles.pixel_size
        found, conservative = (
            resolution_at(columns[f"{name}_{region}"], box, pixel_size) for name in ("dynRegion", "dynRegionAtLeast")
        )
        return found, conservative

    def _coherence(self, volume: torch.Tensor, used: Used) -> torch.Tensor | None:
        """Return the `motion_coherence` in a mask, or None if no Gaussian is in it."""
        run, seed = self._run, self._options.seed
        particles = run.particles
        points, weights, voxels = points_in_mask(run, volume, particles.pixel_size, self._gaussians, seed)
        if not len(points):
            return None
        residuals, shares = [], []
        for corrected, share, chances in self._densities(used, voxels):
            for half in (1, 2):
                modes = self._modes[half - 1] if corrected else None
                own = None if chances is None else chances[run.halves == half]
                residuals.append(residual_motion(run, half, modes, points, seed, own))
                shares.append((share / len(residuals[-1])).expand(len(residuals[-1]), -1))
        return motion_coherence(torch.cat(residuals), weights, particles.box, particles.pixel_size, torch.cat(shares))

    @staticmethod
    def _densities(used: Used, voxels: torch.Tensor) -> Iterator[tuple[bool, torch.Tensor, torch.Tensor | None]]:
        """Yield the densities that a map has at (m, 3) voxels: whether corrected, (m,) weights, and its kernel."""
        if isinstance(used, bool):
            yield used, torch.ones(len(voxels)), None
            return
        kernels = used.neighbourhood.all_weights
        for each, weight in zip(used.competing, used.weights, strict=True):
            share = weight[tuple(voxels.T)]
            if share.max() > _USED:
                yield each.corrected, share, kernels[each.bandwidth] if each.near else None
