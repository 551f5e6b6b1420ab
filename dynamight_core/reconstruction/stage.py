"""The stages ``dynamight invert`` and ``dynamight reconstruct``: from a finished run to its maps."""

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path, header_origin, read_map
from dynamight_core.imaging.correlation import fsc_deviation
from dynamight_core.imaging.fourier import resample_volume
from dynamight_core.options import InvertOptions, ReconstructOptions
from dynamight_core.particles.memory import available_memory
from dynamight_core.reconstruction.bias import record_model_bias
from dynamight_core.reconstruction.checks import (
    check_halves,
    check_memory,
    check_options,
    check_run,
    check_views,
    choose_method,
    read_mask,
    read_regions,
)
from dynamight_core.reconstruction.deformation import (
    deforming_region,
    half_conformation,
    half_modes,
    in_conformation,
    inverse_path,
    model_map,
    model_points,
    supported,
)
from dynamight_core.reconstruction.fsc import fourier_shell_correlation, half_map_fsc, resolution_at, soft_mask
from dynamight_core.reconstruction.half_map import LEAST_SHARE, HalfReconstruction, shares_from_fsc
from dynamight_core.reconstruction.images import FullImages
from dynamight_core.reconstruction.inverse import InverseReport, fit_inverse, save_inverse
from dynamight_core.reconstruction.maps import ReconstructionFiles, write_reconstruction
from dynamight_core.reconstruction.residual import (
    cautious_fsc,
    motion_coherence,
    points_in_mask,
    residual_motion,
)
from dynamight_core.training.devices import choose_device

if TYPE_CHECKING:
    from dynamight_core.analysis.results import Run

# Particles of the other half that say when least squares ends.
HELD_OUT = 100

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
    run.config.provenance.setdefault("commands", {})[stage] = shlex.join(sys.argv)
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
        with atomic_path(inverse_path(run, half).with_suffix(".json")) as path:
            path.write_text(json.dumps(asdict(report)))
        say(
            f"Half {half}: the inverse field errs by {report.on_gaussians:.2f} A rms on the Gaussians and "
            f"{report.off_gaussians:.2f} A between them, where motion is {report.motion:.2f} A rms."
        )
        reports.append(report)
    record_stage(run, "invert", options)
    return tuple(reports)


def reconstruct_run(
    run: "Run", options: ReconstructOptions, say: Say = print, progress: Progress | None = None
) -> Reconstruction:
    """Reconstruct both half-maps, each from its own particles with its own decoder, and write RUN/reconstruction.

    The maps are in the frame of the consensus map, or of the conformation asked for, in the particles' box and
    pixel size.

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
        if an option, a mask or the images cannot be used.
    """
    check_options(options)
    device = choose_device(options.device)
    particles = run.particles
    check_run(run)
    motionless, in_frame = options.shrink and not supported(run), options.conformation == "reference"
    if motionless and not in_frame:
        raise InputError(
            f"--conformation is '{options.conformation}', but the images do not support the motions of {run.path} and "
            "none is used; give reference, or --no-shrink for the motions as they were learned"
        )
    gaussians = model_points(run, [half_conformation(run, half, options.conformation, "cpu") for half in (1, 2)])
    mask = None if options.mask is None else read_mask("--mask", options.mask, run, gaussians, say)
    regions = read_regions(options.regions, run, gaussians)
    # The run's particles may be binned otherwise than when it was trained.
    consensus = resample_volume(torch.from_numpy(read_map(run.config.inputs.map)[0]), particles.box)
    images = FullImages(run, device)
    check_memory(images.box, images.device, options)
    check_halves(run.halves, say)
    rigid = options.rigid and in_frame
    folder = Path(run.path) / "reconstruction"

    if motionless:
        say(
            "The images do not support the motions of this run: the maps are made without them. With --no-shrink they "
            "are made with what was learned."
        )
    halves, used, missing, weights = [], [], [], images.noise_weights(options.seed)
    for half in (1, 2):
        modes, support = half_modes(run, half, images, options)
        if support is not None:
            say(support.sentence(half))
        used.append(modes)
        modes, points = in_conformation(run, half, modes, options.conformation, images.pixel_size)
        region = deforming_region(points, images.box, images.pixel_size, options.region_radius)
        tell = _named(progress, f"reconstructing, half {half}")
        blur = None if not options.error_weights else torch.tensor(run.table["dynMotionError"].to_numpy())
        summed = HalfReconstruction.of(
            images.data(weights, blur), torch.where(run.halves == half)[0], modes, region, options.batch_size, tell,
            available_memory() // 4,
        )  # fmt: skip
        halves.append(summed)
        missing.append(check_views(summed.denominator, half, images.pixel_size, say))

    method = options.method
    if method == "auto":
        method = choose_method(any(missing), images.box, images.device, options, say)

    def grown(volume):
        return resample_volume(volume.cpu(), particles.box)

    shares = options.regularisation
    first = [grown(half.backprojected(LEAST_SHARE if shares is None else shares)) for half in halves]
    if mask is None:
        mask = soft_mask((first[0] + first[1]) / 2, particles.pixel_size)
    if shares is None:
        fsc = half_map_fsc(*first, mask, options.seed).corrected
        shares = shares_from_fsc(fsc)[: images.box // 2 + 1]

    def half_maps(deformed: bool) -> list[torch.Tensor]:
        if method == "wbp":
            return [grown(half.backprojected(shares, deformed)) for half in halves]
        maps = []
        for number, half in enumerate(halves, 1):
            name = "least squares" if deformed else "rigid least squares"
            others = torch.where(run.halves != number)[0]
            volume, solution = half.least_squares(
                shares, others[:: max(1, len(others) // HELD_OUT)], deformed, options.steps, options.batch_size,
                _named(progress, f"{name}, half {number}"),
            )  # fmt: skip
            say(f"Half {number}, {name}: {solution.steps} steps until held-out images were explained no better.")
            maps.append(grown(volume))
        return maps

    maps = half_maps(True)
    model = model_map(run, gaussians)
    extra = {"dynModelConsensus": fourier_shell_correlation(model, consensus, mask)}

    def coherence(volume: torch.Tensor, deformed: bool) -> torch.Tensor | None:
        points, weights = points_in_mask(run, volume, particles.pixel_size, options.seed)
        if not in_frame or not len(points):
            return None
        left = [
            residual_motion(run, half, used[half - 1] if deformed else None, points, options.seed) for half in (1, 2)
        ]
        return motion_coherence(torch.cat(left), weights, particles.box, particles.pixel_size)

    deviations = {name: fsc_deviation(volume) for name, volume in regions.items()}

    def curves(pair: list[torch.Tensor], deformed: bool) -> dict[str, torch.Tensor]:
        average = (pair[0] + pair[1]) / 2
        named = extra | {"dynModelMap": fourier_shell_correlation(model, average, mask)}
        for name, volume in regions.items():
            found = half_map_fsc(*pair, volume, options.seed)
            error, left = found.standard_error(deviations[name]), coherence(volume, deformed)
            named[f"dynRegion_{name}"] = found.corrected
            named[f"dynRegionAtLeast_{name}"] = cautious_fsc(found.corrected, error, left)
            named[f"dynRegionModel_{name}"] = fourier_shell_correlation(model, average, volume)
        return named

    # Maps lie where the consensus does, for programs that go by headers.
    origin = header_origin(run.config.inputs.map)

    def write(to: Path, pair: list[torch.Tensor], columns: dict, deformed: bool) -> ReconstructionFiles:
        return write_reconstruction(
            to, *pair, particles.pixel_size, mask, columns, options.seed, options.b_factor,
            options.local_resolution, origin, coherence(mask, deformed),
        )  # fmt: skip

    # Rigid maps of an earlier reconstruction would be compared in another mask.
    shutil.rmtree(folder / "rigid", ignore_errors=True)
    columns, written_rigid = {True: curves(maps, True)}, None
    if rigid:
        plain = half_maps(False)
        columns[False] = curves(plain, False)
        written_rigid = write(folder / "rigid", plain, columns[False], False)
    deformed = write(folder, maps, columns[True], True)
    record_stage(run, "reconstruct", options, method_used=method)
    bias = record_model_bias(run)
    if bias:
        say(f"Warning: {bias}.")
    before = "" if not rigid else f", {_claim(written_rigid)} without deformation (same method and mask)"
    say(f"Resolution at FSC 0.143: {_claim(deformed)} with motion corrected{before}.")
    undone = (
        "with the motion counted that was not undone, which blurs both half-maps alike and does not show in them, and "
        if in_frame else ""
    )
    say(f"In brackets, what one may rely on: {undone}with a standard error of the FSC in the mask taken off.")
    for name in regions:
        text = [
            f"{_ends(found[f'dynRegion_{name}'], particles):.1f} A "
            f"({_ends(found[f'dynRegionAtLeast_{name}'], particles):.1f} A)"
            for found in columns.values()
        ]
        say(f"In {name}: {text[0]}" + (f", {text[1]} without deformation." if rigid else "."))
    after = columns[True]["dynModelMap"]
    say(
        f"Gaussian model and consensus agree to FSC {float(extra['dynModelConsensus'][1:].mean()):.3f} (mean over "
        f"shells), model and final map to {float(after[1:].mean()):.3f}."
    )
    say(
        f"The maps are in {folder}: map.mrc, map_sharpened.mrc (B-factor {deformed.b_factor:.0f} A^2), "
        "half1_unfil.mrc, half2_unfil.mrc, mask.mrc and fsc.star."
    )
    return Reconstruction(deformed, written_rigid)


def _ends(curve: torch.Tensor, particles) -> float:
    """Return the resolution (A) of an FSC curve of maps in the particles' box."""
    return resolution_at(curve, particles.box, particles.pixel_size)


def _claim(files: ReconstructionFiles) -> str:
    """Return the resolution of maps in words, in brackets what it is at least."""
    return f"{files.resolution:.1f} A ({files.resolution_at_least:.1f} A)"


def _named(progress: Progress | None, stage: str):
    """Return the (done, total) progress of a stage, or None."""
    return None if progress is None else lambda done, total: progress(stage, done, total)
