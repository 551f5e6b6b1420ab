"""States of the molecule from the images near them: half-maps with FSC, mask and local resolution for each."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dynamight_core.errors import InputError
from dynamight_core.files import header_origin
from dynamight_core.imaging.backprojection import ParticleData
from dynamight_core.imaging.correlation import resolution_at
from dynamight_core.imaging.fourier import resample_volume
from dynamight_core.judging.errors import known_coordinates
from dynamight_core.options import ReconstructOptions
from dynamight_core.particles.memory import available_memory
from dynamight_core.reconstruction.checks import check_run
from dynamight_core.reconstruction.deformation import half_modes, supported
from dynamight_core.reconstruction.fsc import half_map_fsc
from dynamight_core.reconstruction.images import FullImages
from dynamight_core.reconstruction.local import TRUSTS, Candidates, LocalHalf, bandwidths_at, blend_weights
from dynamight_core.reconstruction.local_filter import locally_filtered
from dynamight_core.reconstruction.maps import write_reconstruction
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run

_BATCH = 200


@dataclass(frozen=True)
class LocalState:
    """The maps of one state.

    Parameters
    ----------
    half_maps
        (box, box, box) each, unfiltered.
    particles, trust
        (box, box, box) effective number of particles, and trust in the field, around each voxel.
    moving
        (box, box, box) soft mask of the moving part.
    bandwidth
        of the kernel that most of the moving part has, A rms; infinite if all particles have the same weight.
    """

    half_maps: tuple[torch.Tensor, torch.Tensor]
    particles: torch.Tensor
    trust: torch.Tensor
    moving: torch.Tensor
    bandwidth: float

    def row(self) -> dict[str, float]:
        """Return how the moving part was made: means over it of what was chosen around each voxel."""
        total = self.moving.sum()
        return {
            "bandwidth_A": self.bandwidth,
            "effective_particles": float((self.particles * self.moving).sum() / total),
            "trust": float((self.trust * self.moving).sum() / total),
        }


class LocalStates:
    """Reconstructs states of a run. Images are prepared once for all states.

    Parameters
    ----------
    run
        finished and summarised.
    reporter
        receives messages.

    Raises
    ------
    InputError
        if motion is not supported in the run, or no motion varies by more than its error.
    """

    def __init__(self, run: Run, reporter: Reporter = PRINT):
        check_run(run)
        if not supported(run):
            raise InputError(
                f"motion is not supported in {run.path}: its particles have no states; use --method model to see what "
                "was learned"
            )
        self.run = run
        images = FullImages(run, torch.device("cpu"))
        options = ReconstructOptions()
        coordinates, variances, self._known = known_coordinates(run)
        if not self._known.any():
            raise InputError(
                f"the coordinates of {run.path} vary by no more than their errors, so no particle is known to be near "
                "a state; use --method model"
            )
        self._coordinates, self._variances = coordinates[:, self._known], variances[:, self._known]
        data = _in_memory(images, images.noise_weights(options.seed), reporter)
        self.pixel_size = images.pixel_size
        self._halves = []
        for half in (1, 2):
            modes, _ = half_modes(run, half, images, options)
            rows = torch.where(run.halves == half)[0]
            points = run.models[half - 1].consensus_positions
            self._halves.append(
                LocalHalf(data, rows, modes, self._coordinates, self._variances, points, options.region_radius)
            )

    def candidates(self, coordinates) -> tuple[list[float], Candidates, Candidates]:
        """Return the bandwidths, and the candidates of both half-sets, at (K,) coordinates (A rms)."""
        centre = torch.as_tensor(np.asarray(coordinates), dtype=torch.float32)[self._known]
        bandwidths = bandwidths_at(self._coordinates, self._variances, centre)
        first, second = (half.candidates(centre, bandwidths) for half in self._halves)
        return bandwidths, first, second

    def reconstruct(self, coordinates) -> LocalState:
        """Return the maps of the state at (K,) coordinates (A rms)."""
        bandwidths, first, second = self.candidates(coordinates)
        weights = blend_weights(first, second, self.pixel_size)
        box = self.run.particles.box

        def blended(volumes: torch.Tensor) -> torch.Tensor:
            return resample_volume((weights * volumes).sum((0, 1)), box)

        by_bandwidth, moving = weights.sum(1), torch.maximum(first.moving, second.moving)
        numbers = torch.tensor(first.numbers) + torch.tensor(second.numbers)
        # On a logarithmic scale, as the bandwidths are spaced.
        particles = torch.tensordot(numbers.log(), by_bandwidth, 1).exp()
        trust = torch.tensordot(torch.tensor(TRUSTS), weights.sum(0), 1)
        most = int((by_bandwidth * moving).sum((1, 2, 3)).argmax())
        return LocalState(
            (blended(first.volumes), blended(second.volumes)),
            resample_volume(particles, box),
            resample_volume(trust, box),
            resample_volume(moving, box).clamp(0, 1),
            bandwidths[most],
        )

    def write(self, state: LocalState, folder: Path) -> tuple[np.ndarray, dict[str, float]]:
        """Write half-maps, map, sharpened map, mask, fsc.star and local resolution of a state to a folder.

        Returns
        -------
        tuple
            (box, box, box) map filtered by its local FSC, and the state's entries in the table of states:
            `LocalState.row`, and the resolution at FSC 0.143 (A) in the mask and in the moving part.
        """
        pixel_size = self.run.particles.pixel_size
        moving = half_map_fsc(*state.half_maps, state.moving)
        files = write_reconstruction(
            folder,
            *state.half_maps,
            pixel_size,
            extra={"dynRegion_moving": moving.corrected},
            with_local_resolution=True,
            origin=header_origin(self.run.config.inputs.map).tolist(),
        )
        resolutions = {
            "resolution_A": files.resolution,
            "moving_resolution_A": resolution_at(moving.corrected, self.run.particles.box, pixel_size),
        }
        return locally_filtered(*state.half_maps, pixel_size).numpy(), state.row() | resolutions


def _in_memory(images: FullImages, weights: torch.Tensor, reporter: Reporter) -> ParticleData:
    """Return the data of all images, with images and transfer functions kept in memory if they fit."""
    n, box = images.particles.n_images, images.box
    if n * box * (2 * box + 4 * (box // 2 + 1)) > available_memory() // 2:
        return images.data(weights)
    prepared = torch.empty(n, box, box, dtype=torch.float16)
    transfer: torch.Tensor | None = None
    for part in torch.arange(n).split(_BATCH):
        prepared[part] = images.images(part).half()
        of_part = images.transfer(part)
        if transfer is None:
            transfer = torch.empty(n, *of_part.shape[1:], dtype=of_part.dtype)
        transfer[part] = of_part
        reporter.progress("preparing images", int(part[-1]) + 1, n)
    assert transfer is not None
    kept = transfer
    return ParticleData(
        lambda rows: prepared[rows],
        lambda rows: kept[rows],
        images.matrices,
        box,
        images.pixel_size,
        weights,
        series=images.particles.series,
    )
