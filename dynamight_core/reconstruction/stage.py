"""The stages ``dynamight invert`` and ``dynamight reconstruct``: from a finished run to its maps."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage

from dynamight_core.errors import InputError
from dynamight_core.files import read_map
from dynamight_core.imaging.ctf import evaluate_ctf
from dynamight_core.imaging.fourier import resample_volume
from dynamight_core.model.half import ConsensusField
from dynamight_core.options import METHODS, InvertOptions, ReconstructOptions
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.preprocess import Preprocessing, read_prepared
from dynamight_core.reconstruction.backprojection import accumulate, solve
from dynamight_core.reconstruction.fsc import fourier_shell_correlation, soft_mask
from dynamight_core.reconstruction.inverse import (
    ForwardFromInverse,
    InverseReport,
    fit_inverse,
    load_inverse,
    save_inverse,
)
from dynamight_core.reconstruction.maps import ReconstructionFiles, write_reconstruction
from dynamight_core.training.devices import choose_device

if TYPE_CHECKING:
    from dynamight_core.analysis.results import Run

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Reconstruction:
    """What `reconstruct_run` wrote.

    Parameters
    ----------
    deformed
        maps with motion corrected.
    rigid
        maps of the same particles without deformation, or None.
    """

    deformed: ReconstructionFiles
    rigid: ReconstructionFiles | None


def record_stage(run: "Run", stage: str, options, **more) -> None:
    """Write the options of a stage and the command that ran it to the run's config.yaml.

    Parameters
    ----------
    run
        whose config is updated.
    stage
        name of the stage.
    options
        a dataclass or a dictionary.
    more
        further options.
    """
    values = asdict(options) if is_dataclass(options) else dict(options)
    run.config.stages[stage] = values | more
    run.config.provenance.setdefault("commands", {})[stage] = " ".join(sys.argv)
    run.config.write(run.path)


def invert_run(
    run: "Run", options: InvertOptions, say: Say = print, progress: Progress | None = None
) -> tuple[InverseReport, InverseReport]:
    """Train the inverse field of both halves on their own particles (paper, Methods); write RUN/half?/inverse.*.

    Parameters
    ----------
    run
        finished.
    options
        of the fit.
    say, progress
        take lines for the user, and a stage's name with what is done and to do.
    """
    device = choose_device(options.device)
    reports = []
    for half, model in enumerate(run.models, 1):
        model.to(device)
        latents = run.latents[half - 1][run.halves == half].to(device)
        tell = _named(progress, f"inverse field, half {half}")
        field, report = fit_inverse(
            model, latents, model.gaussians.positions, model.box * model.pixel_size, model.box, options, tell
        )
        save_inverse(inverse_path(run, half), field)
        say(
            f"Half {half}: the inverse field errs by {report.on_gaussians:.2f} A rms on the Gaussians and "
            f"{report.off_gaussians:.2f} A between them, where motion is {report.motion:.2f} A rms."
        )
        reports.append(report)
    record_stage(run, "invert", options)
    return tuple(reports)


def inverse_path(run: "Run", half: int) -> Path:
    """Return where the inverse field of a half is kept."""
    return Path(run.path) / f"half{half}" / "inverse.safetensors"


def reconstruct_run(
    run: "Run", options: ReconstructOptions, say: Say = print, progress: Progress | None = None
) -> Reconstruction:
    """Reconstruct both half-maps, each from its own particles with its own decoder, and write RUN/reconstruction.

    The maps are in the frame of the consensus map, in the particles' box and pixel size.

    Parameters
    ----------
    run
        finished and summarised.
    options
        of the reconstruction.
    say, progress
        take lines for the user, and a stage's name with what is done and to do.

    Raises
    ------
    InputError
        if an option, the mask or the images cannot be used.
    """
    if options.method not in METHODS:
        raise InputError(f"--method is '{options.method}'; choose one of {', '.join(METHODS)}")
    device = choose_device(options.device)
    particles = run.particles
    mask = None if options.mask is None else _read_mask(options.mask, particles)
    consensus = torch.from_numpy(read_map(run.config.inputs.map)[0])
    fields_of_halves = [_field(run, half, options.through_inverse, device) for half in (1, 2)]
    images = FullImages(run, device)
    folder = Path(run.path) / "reconstruction"

    def half_maps(name: str, deformed: bool) -> list[torch.Tensor]:
        return [
            images.reconstruct(
                half, options, _named(progress, f"{name}, half {half}"),
                **(_deformation(run, half, fields_of_halves[half - 1], options, images) if deformed else {}),
            )
            for half in (1, 2)
        ]  # fmt: skip

    maps = half_maps("reconstructing", True)
    if mask is None:
        mask = soft_mask((maps[0] + maps[1]) / 2, particles.pixel_size)
    model = model_map(run)
    extra = {"dynModelConsensus": fourier_shell_correlation(model, consensus, mask)}
    rigid = None
    # Rigid maps of an earlier reconstruction would be compared in another mask.
    shutil.rmtree(folder / "rigid", ignore_errors=True)
    if options.rigid:
        plain = half_maps("rigid reconstruction", False)
        rigid = write_reconstruction(
            folder / "rigid", *plain, particles.pixel_size, mask,
            extra | {"dynModelMap": fourier_shell_correlation(model, (plain[0] + plain[1]) / 2, mask)}, options.seed,
        )  # fmt: skip
    extra["dynModelMap"] = fourier_shell_correlation(model, (maps[0] + maps[1]) / 2, mask)
    deformed = write_reconstruction(folder, *maps, particles.pixel_size, mask, extra, options.seed)
    record_stage(run, "reconstruct", options)
    before = "" if rigid is None else f", {rigid.resolution:.1f} A without deformation (same method and mask)"
    say(f"Resolution at FSC 0.143: {deformed.resolution:.1f} A with motion corrected{before}.")
    say(
        f"Gaussian model and consensus agree to FSC {float(extra['dynModelConsensus'][1:].mean()):.3f} (mean over "
        f"shells), model and final map to {float(extra['dynModelMap'][1:].mean()):.3f}."
    )
    say(f"The maps are in {folder}: map.mrc, half1_unfil.mrc, half2_unfil.mrc, mask.mrc and fsc.star.")
    return Reconstruction(deformed, rigid)


class FullImages:
    """A run's particle images at full size, prepared as for training but not masked.

    Parameters
    ----------
    run
        finished.
    device
        where to work.
    """

    def __init__(self, run: "Run", device: torch.device):
        self.run, self.device = run, device
        particles, config = run.particles, run.config
        self.particles = particles
        self.reader = ImageReader(particles)
        # Images of an odd box lose their last frequency; the map is padded back.
        self.box = particles.box - particles.box % 2
        self.pixel_size = particles.pixel_size * particles.box / self.box
        self.preprocessing = Preprocessing(
            self.box, config.inputs.particle_diameter, mask=False, invert=config.inputs.invert_contrast,
            normalise=config.inputs.normalise,
        ).with_set_noise(self.reader, config.train.seed)  # fmt: skip
        self.matrices = particles.matrices

    def images(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the (b, box, box) prepared images of (b,) particles."""
        return read_prepared(self.reader, indices.numpy(), self.preprocessing, self.device)

    def transfer(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the (b, box, box//2+1) transfer functions of (b,) particles."""
        return evaluate_ctf(self.particles.ctf[indices], self.box, self.pixel_size)

    def reconstruct(self, half: int, options: ReconstructOptions, progress=None, **deformation) -> torch.Tensor:
        """Return the map of a half's particles in the particles' box; `deformation` as `accumulate` takes it."""
        indices = torch.where(self.run.halves == half)[0]
        sums = accumulate(
            self.images, self.transfer, self.matrices, indices, self.box, self.pixel_size,
            batch_size=options.batch_size, progress=progress, device=self.device, **deformation,
        )  # fmt: skip
        return resample_volume(solve(sums, options.regularisation).cpu(), self.particles.box)


@torch.no_grad()
def model_map(run: "Run") -> torch.Tensor:
    """Return the (box, box, box) map of both halves' Gaussians in the consensus frame, averaged."""
    particles, total = run.particles, 0.0
    for model in run.models:
        positions = model.consensus_positions
        scale = particles.pixel_size / model.pixel_size
        total = total + model.gaussians.render(particles.box, particles.pixel_size, positions).cpu() * scale / 2
    return total


def deforming_region(run: "Run", half: int, box: int, pixel_size: float, radius: float) -> torch.Tensor:
    """Return (box, box, box) weights of the displacement: 1 within `radius` (A) of the Gaussians, 0 beyond twice it."""
    positions = run.models[half - 1].consensus_positions.cpu().numpy()
    voxels = np.round(positions / pixel_size).astype(int)[:, ::-1] + box // 2
    voxels = voxels[((voxels >= 0) & (voxels < box)).all(1)]
    outside = np.ones((box,) * 3, dtype=bool)
    outside[tuple(voxels.T)] = False
    distance = ndimage.distance_transform_edt(outside) * pixel_size
    edge = np.clip(distance / radius - 1, 0, 1)
    return torch.from_numpy((0.5 + 0.5 * np.cos(np.pi * edge)).astype(np.float32)).reshape((box,) * 3)


def _field(run: "Run", half: int, through_inverse: bool, device: torch.device) -> ConsensusField:
    """Return the forward field of a half on the consensus frame."""
    model = run.models[half - 1].to(device)
    if through_inverse:
        return ConsensusField(model, ForwardFromInverse(load_inverse(inverse_path(run, half), device)))
    return ConsensusField(model)


def _deformation(run: "Run", half: int, field, options: ReconstructOptions, images: FullImages) -> dict:
    """Return what `accumulate` needs to know of a half's deformations."""
    region = deforming_region(run, half, images.box, images.pixel_size, options.region_radius)
    return {
        "field": field,
        "latents": run.latents[half - 1].to(images.device),
        "region": region,
    }


def _read_mask(path: str, particles) -> torch.Tensor:
    volume, pixel_size = read_map(path)
    if volume.shape[0] != particles.box or abs(pixel_size / particles.pixel_size - 1) > 0.005:
        raise InputError(
            f"mask {path} has {volume.shape[0]} voxels of {pixel_size:.4g} A but the particles have "
            f"{particles.box} pixels of {particles.pixel_size:.4g} A; give a mask on the grid of the maps"
        )
    if volume.min() < -0.01 or volume.max() > 1.01:
        raise InputError(f"mask {path} has values from {volume.min():.2g} to {volume.max():.2g}; give 0 to 1")
    return torch.from_numpy(volume)


def _named(progress: Progress | None, stage: str):
    """Return the (done, total) progress of a stage, or None."""
    return None if progress is None else lambda done, total: progress(stage, done, total)
