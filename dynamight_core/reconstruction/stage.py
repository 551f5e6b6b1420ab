"""The stages ``dynamight invert`` and ``dynamight reconstruct``: from a finished run to its maps."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from dynamight_core.devices import choose_device
from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path, header_origin, read_map
from dynamight_core.imaging.correlation import fsc_deviation
from dynamight_core.imaging.fourier import resample_volume
from dynamight_core.judging.bias import record_model_bias
from dynamight_core.options import InvertOptions, ReconstructOptions
from dynamight_core.particles.memory import available_memory
from dynamight_core.reconstruction.checks import (
    check_halves,
    check_memory,
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
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run, record_stage

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


def invert_run(run: Run, options: InvertOptions, reporter: Reporter = PRINT) -> tuple[InverseReport, InverseReport]:
    """Train the inverse field of both halves on their own particles (paper, Methods); write RUN/half?/inverse.*.

    Parameters
    ----------
    run
        finished.
    options
        of the fit.
    reporter
        takes lines for the user, and progress.
    """
    device = choose_device(options.device)
    reports = []
    for half, model in enumerate(run.models, 1):
        model.to(device)
        latents = run.latents[half - 1][run.halves == half].to(device)
        progress = reporter.step(f"inverse field, half {half}")
        field, report = fit_inverse(
            model, latents, model.gaussians.positions, model.box * model.pixel_size, model.box, options, progress
        )
        save_inverse(inverse_path(run, half), field)
        with atomic_path(inverse_path(run, half).with_suffix(".json")) as path:
            path.write_text(json.dumps(asdict(report)))
        reporter.say(
            f"Half {half}: the inverse field errs by {report.on_gaussians:.2f} A rms on the Gaussians and "
            f"{report.off_gaussians:.2f} A between them, where motion is {report.motion:.2f} A rms."
        )
        reports.append(report)
    record_stage(run, "invert", options)
    return tuple(reports)


def reconstruct_run(run: Run, options: ReconstructOptions, reporter: Reporter = PRINT) -> Reconstruction:
    """Reconstruct both half-maps, each from its own particles with its own decoder, and write RUN/reconstruction.

    The maps are in the frame of the consensus map, or of the conformation asked for, in the particles' box and
    pixel size.

    Parameters
    ----------
    run
        finished and summarised.
    options
        of the reconstruction.
    reporter
        takes lines for the user, and progress.

    Raises
    ------
    InputError
        if an option, a mask or the images cannot be used.
    """
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
    mask = None if options.mask is None else read_mask("--mask", options.mask, run, gaussians, reporter)
    regions = read_regions(options.regions, run, gaussians)
    # The run's particles may be binned otherwise than when it was trained.
    consensus = resample_volume(torch.from_numpy(read_map(run.config.inputs.map)[0]), particles.box)
    images = FullImages(run, device)
    check_memory(images.box, images.device, options)
    check_halves(run.halves, reporter)
    rigid = options.rigid and in_frame
    folder = Path(run.path) / "reconstruction"

    if motionless:
        reporter.say(
            "The images do not support the motions of this run: the maps are made without them. With --no-shrink they "
            "are made with what was learned."
        )
    sums = _HalfSums.of(run, options, images, reporter)
    method = options.method
    if method == "auto":
        method = choose_method(sums.views_are_missing, images.box, images.device, options, reporter)
    shares = options.regularisation
    first = sums.backprojected(LEAST_SHARE if shares is None else shares)
    if mask is None:
        mask = soft_mask((first[0] + first[1]) / 2, particles.pixel_size)
    if shares is None:
        fsc = half_map_fsc(*first, mask, options.seed).corrected
        shares = shares_from_fsc(fsc)[: images.box // 2 + 1]

    judged = _Judgement(run, options, mask, regions, model_map(run, gaussians), consensus, sums.modes)
    # Rigid maps of an earlier reconstruction would be compared in another mask.
    shutil.rmtree(folder / "rigid", ignore_errors=True)
    columns, written = {}, {}
    # The deformed maps last: whoever finds them finds the rigid ones beside them.
    for deformed in (False, True) if rigid else (True,):
        pair = sums.maps(method, shares, deformed)
        columns[deformed] = judged.columns(pair, deformed)
        to = folder if deformed else folder / "rigid"
        written[deformed] = judged.write(to, pair, columns[deformed], deformed)
    record_stage(run, "reconstruct", options, method_used=method)
    bias = record_model_bias(run)
    if bias:
        reporter.warn(bias)
    for line in _outcome(run, judged, written, columns):
        reporter.say(line)
    return Reconstruction(written[True], written.get(False))


class _HalfSums:
    """What the particles of both halves add up to, and the maps that follow from it.

    Parameters
    ----------
    run, options
        of the reconstruction.
    halves
        the sums of each half.
    modes
        of each half, its motion as far as it is used.
    views_are_missing
        whether a cone of directions is missing in a half.
    reporter
        takes lines for the user, and progress.
    """

    def __init__(self, run, options, halves, modes, views_are_missing, reporter: Reporter):
        self.run, self.options, self.halves, self.modes = run, options, halves, modes
        self.views_are_missing, self._reporter = views_are_missing, reporter

    @classmethod
    def of(cls, run: Run, options: ReconstructOptions, images: FullImages, reporter: Reporter) -> "_HalfSums":
        """Read each half's particles once and add them up where its motion puts them."""
        halves, used, missing, weights = [], [], [], images.noise_weights(options.seed)
        for half in (1, 2):
            modes, support = half_modes(run, half, images, options)
            if support is not None:
                reporter.say(support.sentence(half))
            used.append(modes)
            modes, points = in_conformation(run, half, modes, options.conformation, images.pixel_size)
            region = deforming_region(points, images.box, images.pixel_size, options.region_radius)
            progress = reporter.step(f"reconstructing, half {half}")
            blur = None if not options.error_weights else torch.tensor(run.table["dynMotionError"].to_numpy())
            summed = HalfReconstruction.of(
                images.data(weights, blur),
                torch.where(run.halves == half)[0],
                modes,
                region,
                options.batch_size,
                progress,
                available_memory() // 4,
            )
            halves.append(summed)
            missing.append(check_views(summed.denominator, half, images.pixel_size, reporter))
        return cls(run, options, halves, used, any(missing), reporter)

    def maps(self, method: str, shares, deformed: bool) -> list[torch.Tensor]:
        """Return both half-maps in the particles' box, with motion undone or rigid."""
        if method == "wbp":
            return self.backprojected(shares, deformed)
        maps = []
        for number, half in enumerate(self.halves, 1):
            name = "least squares" if deformed else "rigid least squares"
            others = torch.where(self.run.halves != number)[0]
            volume, solution = half.least_squares(
                shares,
                others[:: max(1, len(others) // HELD_OUT)],
                deformed,
                self.options.steps,
                self.options.batch_size,
                self._reporter.step(f"{name}, half {number}"),
            )
            self._reporter.say(
                f"Half {number}, {name}: {solution.steps} steps until held-out images were explained no better."
            )
            maps.append(self._grown(volume))
        return maps

    def backprojected(self, shares, deformed: bool = True) -> list[torch.Tensor]:
        """Return both half-maps by weighted backprojection, in the particles' box."""
        return [self._grown(half.backprojected(shares, deformed)) for half in self.halves]

    def _grown(self, volume: torch.Tensor) -> torch.Tensor:
        return resample_volume(volume.cpu(), self.run.particles.box)


class _Judgement:
    """The curves by which maps are judged, in one mask and in regions, and how maps are written with them.

    Parameters
    ----------
    run, options
        of the reconstruction.
    mask, regions
        in the particles' box; the latter by name.
    model, consensus
        map of the Gaussian model in the frame of the maps, and the consensus map, in the particles' box.
    modes
        of each half, its motion as far as it is used.
    """

    def __init__(self, run, options, mask, regions: dict[str, torch.Tensor], model, consensus, modes):
        self._run, self._options, self._mask, self.regions = run, options, mask, regions
        self._model, self._modes = model, modes
        self._deviations = {name: fsc_deviation(volume) for name, volume in regions.items()}
        self.with_consensus = fourier_shell_correlation(model, consensus, mask)
        # Only in the frame of the consensus is it known where the halves' motions leave a point.
        self.in_frame = options.conformation == "reference"

    def columns(self, pair: list[torch.Tensor], deformed: bool) -> dict[str, torch.Tensor]:
        """Return curves of a pair of half-maps beside those of RELION, by their column of fsc.star."""
        average = (pair[0] + pair[1]) / 2
        named = {
            "dynModelConsensus": self.with_consensus,
            "dynModelMap": fourier_shell_correlation(self._model, average, self._mask),
        }
        for name, volume in self.regions.items():
            found = half_map_fsc(*pair, volume, self._options.seed)
            error, left = found.standard_error(self._deviations[name]), self._coherence(volume, deformed)
            named[f"dynRegion_{name}"] = found.corrected
            named[f"dynRegionAtLeast_{name}"] = cautious_fsc(found.corrected, error, left)
            named[f"dynRegionModel_{name}"] = fourier_shell_correlation(self._model, average, volume)
        return named

    def write(self, to: Path, pair: list[torch.Tensor], columns: dict, deformed: bool) -> ReconstructionFiles:
        """Write a pair of half-maps and what follows from them to a folder."""
        run, options = self._run, self._options
        # Maps lie where the consensus does, for programs that go by headers.
        origin = header_origin(run.config.inputs.map)
        return write_reconstruction(
            to,
            *pair,
            run.particles.pixel_size,
            self._mask,
            columns,
            options.seed,
            options.b_factor,
            options.local_resolution,
            origin,
            self._coherence(self._mask, deformed),
        )

    def _coherence(self, volume: torch.Tensor, deformed: bool) -> torch.Tensor | None:
        """Return what the motion that was not undone leaves of a mask's Fourier coefficients, or None if unknown."""
        run, options = self._run, self._options
        points, weights = points_in_mask(run, volume, run.particles.pixel_size, options.seed)
        if not self.in_frame or not len(points):
            return None
        left = [
            residual_motion(run, half, self._modes[half - 1] if deformed else None, points, options.seed)
            for half in (1, 2)
        ]
        return motion_coherence(torch.cat(left), weights, run.particles.box, run.particles.pixel_size)


def _outcome(
    run: Run, judged: _Judgement, written: dict[bool, ReconstructionFiles], columns: dict[bool, dict]
) -> list[str]:
    """Return what was reached, in lines for the user; `written` and `columns` are by whether motion is undone."""
    before = f", {_claim(written[False])} without deformation (same method and mask)" if False in written else ""
    lines = [f"Resolution at FSC 0.143: {_claim(written[True])} with motion corrected{before}."]
    undone = (
        "with the motion counted that was not undone, which blurs both half-maps alike and does not show in them, and "
        if judged.in_frame
        else ""
    )
    lines.append(f"In brackets, what one may rely on: {undone}with a standard error of the FSC in the mask taken off.")
    for name in judged.regions:
        text = {
            deformed: f"{_ends(found[f'dynRegion_{name}'], run.particles):.1f} A "
            f"({_ends(found[f'dynRegionAtLeast_{name}'], run.particles):.1f} A)"
            for deformed, found in columns.items()
        }
        lines.append(f"In {name}: {text[True]}" + (f", {text[False]} without deformation." if False in text else "."))
    files, after = written[True], columns[True]["dynModelMap"]
    lines.append(
        f"Gaussian model and consensus agree to FSC {float(judged.with_consensus[1:].mean()):.3f} (mean over "
        f"shells), model and final map to {float(after[1:].mean()):.3f}."
    )
    lines.append(
        f"The maps are in {files.final.parent}: map.mrc, map_sharpened.mrc (B-factor {files.b_factor:.0f} A^2), "
        "half1_unfil.mrc, half2_unfil.mrc, mask.mrc and fsc.star."
    )
    return lines


def _ends(curve: torch.Tensor, particles) -> float:
    """Return the resolution (A) of an FSC curve of maps in the particles' box."""
    return resolution_at(curve, particles.box, particles.pixel_size)


def _claim(files: ReconstructionFiles) -> str:
    """Return the resolution of maps in words, in brackets what it is at least."""
    return f"{files.resolution:.1f} A ({files.resolution_at_least:.1f} A)"
