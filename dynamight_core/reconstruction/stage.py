"""The stages ``dynamight invert`` and ``dynamight reconstruct``: from a finished run to its maps."""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from dynamight_core.devices import choose_device
from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path, header_origin, read_map
from dynamight_core.imaging.correlation import fourier_shell_correlation, fsc_deviation, resolution_at
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
    chosen_conformation,
    deforming_region,
    half_conformation,
    half_modes,
    in_conformation,
    inverse_path,
    model_map,
    model_points,
    supported,
)
from dynamight_core.reconstruction.fsc import half_map_fsc, soft_mask
from dynamight_core.reconstruction.half_map import MIN_REGULARISATION, HalfReconstruction, noise_to_signal
from dynamight_core.reconstruction.images import FullImages
from dynamight_core.reconstruction.inverse import InverseReport, fit_inverse, save_inverse
from dynamight_core.reconstruction.maps import ReconstructionFiles, write_reconstruction
from dynamight_core.reconstruction.modes import Modes
from dynamight_core.reconstruction.residual import conservative_fsc, motion_coherence, points_in_mask, residual_motion
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run, record_stage

# Particles of the other half-set that decide when least squares stops.
HELD_OUT = 100


@dataclass(frozen=True)
class Reconstruction:
    """The result of `reconstruct_run`.

    Parameters
    ----------
    deformed
        files of the maps with motion corrected.
    rigid
        files of the maps of the same particles without deformation, or None.
    """

    deformed: ReconstructionFiles
    rigid: ReconstructionFiles | None


def invert_run(run: Run, options: InvertOptions, reporter: Reporter = PRINT) -> tuple[InverseReport, InverseReport]:
    """Train the inverse field of each half-set on its own particles (paper, Methods); write RUN/half?/inverse.*.

    Parameters
    ----------
    run
        finished.
    options
        of the fit.
    reporter
        receives messages and progress.
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
            f"Half-set {half}: the inverse field has an error of {report.on_gaussians:.2f} A rms at the Gaussians and "
            f"{report.off_gaussians:.2f} A between them; the motion is {report.motion:.2f} A rms."
        )
        reports.append(report)
    record_stage(run, "invert", options)
    return reports[0], reports[1]


def reconstruct_run(run: Run, options: ReconstructOptions, reporter: Reporter = PRINT) -> Reconstruction:
    """Reconstruct both half-maps, each from its own particles with its own decoder, and write RUN/reconstruction.

    The maps have the particles' box and pixel size, and the frame of the consensus map or of `options.conformation`.

    Parameters
    ----------
    run
        finished and summarised.
    options
        of the reconstruction.
    reporter
        receives messages and progress.

    Raises
    ------
    InputError
        if an option, a mask or the images cannot be used.
    """
    device = choose_device(options.device)
    particles = run.particles
    check_run(run)
    motionless = options.shrink and not supported(run)
    # Only the consensus frame and the densest conformation have the rigid map beside them.
    rigid = options.rigid and options.conformation in ("auto", "reference")
    # Masks that the user has are in the frame of the consensus.
    stays = motionless or options.mask is not None or bool(options.regions)
    options = replace(options, conformation=chosen_conformation(run, options.conformation, stays, reporter))
    if motionless and options.conformation != "reference":
        raise InputError(
            f"--conformation is '{options.conformation}', but motion is not supported in {run.path} and not applied; "
            "use reference, or --no-shrink to apply the motion as learned"
        )
    gaussians = model_points(run, [half_conformation(run, half, options.conformation, "cpu") for half in (1, 2)])
    mask = None if options.mask is None else read_mask("--mask", options.mask, run, gaussians, reporter)
    regions = read_regions(options.regions, run, gaussians)
    # The particles may be binned differently than in the training.
    consensus = resample_volume(torch.from_numpy(read_map(run.config.inputs.map)[0]), particles.box)
    images = FullImages(run, device)
    check_memory(images.box, images.device, options)
    check_halves(run.halves, reporter)
    folder = Path(run.path) / "reconstruction"

    if motionless:
        reporter.say(
            "Motion is not supported in this run: the maps are reconstructed without it. Use --no-shrink to apply the "
            "motion as learned."
        )
    sums = _HalfSums(run, options, images, reporter)
    method = options.method
    if method == "auto":
        method = choose_method(sums.views_are_missing, images.box, images.device, options, reporter)
    regularisation: torch.Tensor | float | None = options.regularisation
    first = sums.backprojected(MIN_REGULARISATION if regularisation is None else regularisation)
    if mask is None:
        mask = soft_mask((first[0] + first[1]) / 2, particles.pixel_size)
    if regularisation is None:
        fsc = half_map_fsc(*first, mask, options.seed).corrected
        regularisation = noise_to_signal(fsc)[: images.box // 2 + 1]

    judged = _Judgement(run, options, mask, regions, gaussians, consensus, sums.modes)
    # Rigid maps of an earlier reconstruction may have another mask.
    shutil.rmtree(folder / "rigid", ignore_errors=True)
    columns, written = {}, {}
    # The deformed maps last: when they exist, the rigid ones are complete.
    for deformed in (False, True) if rigid else (True,):
        pair = sums.maps(method, regularisation, deformed)
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
    """The sums over the particles of both half-sets, each through its motion, and the maps solved from them.

    `modes` are the motion of each half-set that is applied, `views_are_missing` whether one lacks
    directions, or has many more views in some than in others.
    """

    def __init__(self, run: Run, options: ReconstructOptions, images: FullImages, reporter: Reporter):
        self.run, self.options, self._reporter = run, options, reporter
        self.halves: list[HalfReconstruction] = []
        self.modes: list[Modes] = []
        self.views_are_missing = False
        weights = images.noise_weights(options.seed)
        for half in (1, 2):
            modes, support = half_modes(run, half, images, options)
            if support is not None:
                reporter.say(support.sentence(half))
            self.modes.append(modes)
            modes, points = in_conformation(run, half, modes, options.conformation)
            region = deforming_region(points, images.box, images.pixel_size, options.region_radius)
            errors = torch.tensor(run.table["dynMotionError"].to_numpy()) if options.error_weights else None
            summed = HalfReconstruction.of(
                images.data(weights, errors),
                torch.where(run.halves == half)[0],
                modes,
                region,
                options.batch_size,
                reporter.step(f"reconstructing, half {half}"),
                available_memory() // 4,
            )
            self.halves.append(summed)
            self.views_are_missing |= check_views(summed.denominator, half, images.pixel_size, reporter)

    def maps(
        self, method: str, regularisation: torch.Tensor | float, deformed: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both half-maps in the particles' box, with motion corrected or rigid."""
        if method == "wbp":
            return self.backprojected(regularisation, deformed)
        maps = []
        for number, half in enumerate(self.halves, 1):
            name = "least squares" if deformed else "rigid least squares"
            others = torch.where(self.run.halves != number)[0]
            volume, solution = half.least_squares(
                regularisation,
                others[:: max(1, len(others) // HELD_OUT)],
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

    def backprojected(
        self, regularisation: torch.Tensor | float, deformed: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both half-maps by weighted backprojection, in the particles' box."""
        first, second = (self._resampled(half.backprojected(regularisation, deformed)) for half in self.halves)
        return first, second

    def _resampled(self, volume: torch.Tensor) -> torch.Tensor:
        return resample_volume(volume.cpu(), self.run.particles.box)


class _Judgement:
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
    ):
        self._run, self._options, self._mask, self.regions = run, options, mask, regions
        self._gaussians, self._model, self._modes = gaussians, model_map(run, gaussians), modes
        self._deviations = {name: fsc_deviation(volume) for name, volume in regions.items()}
        self.with_consensus = fourier_shell_correlation(self._model, consensus, mask)

    def columns(self, pair: tuple[torch.Tensor, torch.Tensor], deformed: bool) -> dict[str, torch.Tensor]:
        """Return further columns of fsc.star for two half-maps."""
        average = (pair[0] + pair[1]) / 2
        named = {
            "dynModelConsensus": self.with_consensus,
            "dynModelMap": fourier_shell_correlation(self._model, average, self._mask),
        }
        for name, volume in self.regions.items():
            found = half_map_fsc(*pair, volume, self._options.seed)
            error, coherence = found.standard_error(self._deviations[name]), self._coherence(volume, deformed)
            named[f"dynRegion_{name}"] = found.corrected
            named[f"dynRegionAtLeast_{name}"] = conservative_fsc(found.corrected, error, coherence)
            named[f"dynRegionModel_{name}"] = fourier_shell_correlation(self._model, average, volume)
        return named

    def write(
        self, to: Path, pair: tuple[torch.Tensor, torch.Tensor], columns: dict[str, torch.Tensor], deformed: bool
    ) -> ReconstructionFiles:
        """Write two half-maps and what follows from them to a folder, with the header origin of the consensus map."""
        run, options = self._run, self._options
        return write_reconstruction(
            to,
            *pair,
            run.particles.pixel_size,
            self._mask,
            columns,
            options.seed,
            options.b_factor,
            options.local_resolution,
            header_origin(run.config.inputs.map).tolist(),
            self._coherence(self._mask, deformed),
        )

    def _coherence(self, volume: torch.Tensor, deformed: bool) -> torch.Tensor | None:
        """Return the `motion_coherence` in a mask, or None if no Gaussian is in it."""
        run, options = self._run, self._options
        points, weights = points_in_mask(run, volume, run.particles.pixel_size, self._gaussians, options.seed)
        if not len(points):
            return None
        residuals = [
            residual_motion(run, half, self._modes[half - 1] if deformed else None, points, options.seed)
            for half in (1, 2)
        ]
        return motion_coherence(torch.cat(residuals), weights, run.particles.box, run.particles.pixel_size)


def _outcome(
    run: Run, judged: _Judgement, written: dict[bool, ReconstructionFiles], columns: dict[bool, dict[str, torch.Tensor]]
) -> list[str]:
    """Return the result in lines for the user; the keys of `written` and `columns` are whether motion is corrected."""
    files, without = written[True], ""
    if False in written:
        without = f", {_resolutions(written[False])} without deformation (same method and mask)"
    lines = [
        f"Resolution at FSC 0.143: {_resolutions(files)} with motion corrected{without}.",
        "In parentheses: a conservative estimate that includes residual motion and one standard error of the FSC.",
    ]
    box, pixel_size = run.particles.box, run.particles.pixel_size
    for name in judged.regions:
        text = {
            deformed: f"{resolution_at(found[f'dynRegion_{name}'], box, pixel_size):.1f} A "
            f"({resolution_at(found[f'dynRegionAtLeast_{name}'], box, pixel_size):.1f} A)"
            for deformed, found in columns.items()
        }
        lines.append(f"In {name}: {text[True]}" + (f", {text[False]} without deformation." if False in text else "."))
    return [
        *lines,
        f"Mean FSC of the Gaussian model with the consensus {float(judged.with_consensus[1:].mean()):.3f}, with the "
        f"final map {float(columns[True]['dynModelMap'][1:].mean()):.3f}.",
        f"The maps are in {files.final.parent}: map.mrc, map_sharpened.mrc (B-factor {files.b_factor:.0f} A^2), "
        "half1_unfil.mrc, half2_unfil.mrc, mask.mrc and fsc.star.",
    ]


def _resolutions(files: ReconstructionFiles) -> str:
    """Return the resolution of maps, with the conservative one in parentheses."""
    return f"{files.resolution:.1f} A ({files.conservative_resolution:.1f} A)"
