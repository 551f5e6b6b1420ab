"""The stages ``dynamight invert`` and ``dynamight reconstruct``: from a finished run to its maps."""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from dynamight_core.devices import choose_device, describe_device
from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path, read_map
from dynamight_core.groups import world
from dynamight_core.imaging.fourier import resample_volume
from dynamight_core.judging.bias import record_model_bias
from dynamight_core.judging.conclusion import record_conclusion
from dynamight_core.options import InvertOptions, ReconstructOptions
from dynamight_core.reconstruction.atomic_models import model_densities
from dynamight_core.reconstruction.checks import (
    check_halves,
    check_memory,
    check_run,
    choose_method,
    found_regions,
    may_compete,
    read_mask,
    read_regions,
)
from dynamight_core.reconstruction.competition import Choice, Neighbourhood
from dynamight_core.reconstruction.deformation import (
    chosen_conformation,
    half_conformation,
    inverse_path,
    model_points,
    supported,
)
from dynamight_core.reconstruction.densities import MOLECULE, density_sentence, write_densities
from dynamight_core.reconstruction.fsc import half_map_fsc, soft_mask
from dynamight_core.reconstruction.gains import write_gains
from dynamight_core.reconstruction.half_map import noise_to_signal
from dynamight_core.reconstruction.half_sums import HalfSums
from dynamight_core.reconstruction.images import FullImages
from dynamight_core.reconstruction.inverse import InverseReport, fit_inverse, save_inverse
from dynamight_core.reconstruction.judgement import Judgement
from dynamight_core.reconstruction.maps import ReconstructionFiles
from dynamight_core.reconstruction.symmetrised import Subunit
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run, record_stage, whole_set


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


@whole_set("invert")
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


@whole_set("reconstruct")
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
    particles = run.particles
    check_run(run)
    subunit = Subunit.of(run, particles.box) if options.symmetrise else None
    motionless = options.shrink and not supported(run)
    # Only the consensus frame and the densest conformation have the rigid map beside them.
    rigid = options.rigid and options.conformation in ("auto", "reference")
    options = replace(options, conformation=_frame(run, options, motionless, reporter))
    gaussians = model_points(run, [half_conformation(run, half, options.conformation, "cpu") for half in (1, 2)])
    mask = None if options.mask is None else read_mask("--mask", options.mask, run, gaussians, reporter)
    regions = read_regions(options.regions, run, gaussians)
    atomic = model_densities(options.models, options.origin, run)
    # The particles may be binned differently than in the training.
    consensus = resample_volume(torch.from_numpy(read_map(run.config.inputs.map)[0]), particles.box)
    device = choose_device(options.device)
    reporter.say(describe_device(options.device, device))
    images = FullImages(run, device)
    check_memory(images.box, images.device, options)
    check_halves(run.halves, reporter)
    if motionless:
        reporter.say(
            "Motion is not supported in this run: the maps are reconstructed without it. Use --no-shrink to apply the "
            "motion as learned."
        )
    compete = options.choose_density and not motionless
    compete = world().agreed(compete and may_compete(images.box, images.device, options, reporter))
    sums = HalfSums(run, options, images, reporter, Neighbourhood.of(run, options.conformation) if compete else None)
    method = options.method
    if method == "auto":
        method = choose_method(sums.views_are_uneven, images.box, images.device, options, reporter)
    # Machines may have different memory.
    method = world().agreed(method)
    choice = sums.choice(method)
    regularisation: torch.Tensor | float | None = options.regularisation
    initial = sums.first_maps(choice)
    if mask is None:
        mask = soft_mask((initial[0] + initial[1]) / 2, particles.pixel_size)
    if regularisation is None:
        fsc = half_map_fsc(*initial, mask, options.seed).corrected
        regularisation = noise_to_signal(fsc)[: images.box // 2 + 1]
    regions |= found_regions(run, gaussians, sums.moving, set(regions))
    judged = Judgement(run, options, mask, regions, gaussians, consensus, sums.modes, atomic)
    maps = sums.maps(method, regularisation, choice, rigid)
    if subunit is not None:
        maps = {motion: (subunit.copied(first), subunit.copied(second)) for motion, (first, second) in maps.items()}

    def conclude() -> Reconstruction:
        result = _write(run, judged, maps, choice, reporter)
        record_stage(run, "reconstruct", options, method_used=method, motion_used=not motionless)
        bias = record_model_bias(run)
        if bias:
            reporter.warn(bias)
        record_conclusion(run)
        return result

    return world().once(conclude)


def _frame(run: Run, options: ReconstructOptions, motionless: bool, reporter: Reporter) -> str:
    """Return the conformation of the maps that the options stand for, not "auto"."""
    # Masks and models that the user has are in the frame of the consensus.
    stays = motionless or options.mask is not None or bool(options.regions or options.models) or options.symmetrise
    if options.symmetrise and options.conformation not in ("auto", "reference"):
        raise InputError(
            f"--conformation is '{options.conformation}', but --symmetrise needs the frame of the mask; use reference"
        )
    conformation = chosen_conformation(run, options.conformation, stays, reporter)
    if motionless and conformation != "reference":
        raise InputError(
            f"--conformation is '{conformation}', but motion is not supported in {run.path} and not applied; "
            "use reference, or --no-shrink to apply the motion as learned"
        )
    return conformation


def _write(
    run: Run,
    judged: Judgement,
    maps: dict[bool, tuple[torch.Tensor, torch.Tensor]],
    choice: Choice | None,
    reporter: Reporter,
) -> Reconstruction:
    """Write half-maps, by whether motion is used, and say what was found."""
    folder = Path(run.path) / "reconstruction"
    # Rigid maps of an earlier reconstruction may have another mask.
    shutil.rmtree(folder / "rigid", ignore_errors=True)
    columns, written = {}, {}
    # The map of the molecule last: when it exists, the rigid one is complete.
    for motion, pair in sorted(maps.items()):
        used = choice if motion and choice is not None else motion
        columns[motion] = judged.columns(pair, used)
        written[motion] = judged.write(folder if motion else folder / "rigid", pair, columns[motion], used)
    for line in _outcome(judged, written, columns, choice):
        reporter.say(line)
    write_gains(folder, maps, {MOLECULE: judged.mask, **judged.regions})
    table = write_densities(folder, run, judged, choice, written, columns)
    for row in table.to_dict("records"):
        reporter.say(density_sentence(row))
    return Reconstruction(written[True], written.get(False))


def _outcome(
    judged: Judgement,
    written: dict[bool, ReconstructionFiles],
    columns: dict[bool, dict[str, torch.Tensor]],
    choice: Choice | None,
) -> list[str]:
    """Return the result in lines for the user; the keys of `written` and `columns` are whether motion is corrected."""
    files, without = written[True], ""
    how = "with motion corrected" if choice is None else "with motion corrected where the half-maps agree better by it"
    also = "" if choice is None else "; densities.csv and motion_used.mrc show where"
    if False in written:
        without = f", {_resolutions(written[False])} without deformation (same method and mask)"
    lines = [
        f"Resolution at FSC 0.143: {_resolutions(files)} {how}{without}.",
        "In parentheses: a conservative estimate that includes residual motion and one standard error of the FSC.",
    ]
    for name in judged.regions:
        text = {
            motion: "{:.1f} A ({:.1f} A)".format(*judged.resolutions(found, name)) for motion, found in columns.items()
        }
        lines.append(f"In {name}: {text[True]}" + (f", {text[False]} without deformation." if False in text else "."))
    return [
        *lines,
        f"Mean FSC of the Gaussian model with the consensus {float(judged.with_consensus[1:].mean()):.3f}, with the "
        f"final map {float(columns[True]['dynModelMap'][1:].mean()):.3f}.",
        *judged.agreement(columns),
        f"The maps are in {files.final.parent}: map.mrc, map_sharpened.mrc (B-factor {files.b_factor:.0f} A^2), "
        f"half1_unfil.mrc, half2_unfil.mrc, mask.mrc and fsc.star{also}.",
    ]


def _resolutions(files: ReconstructionFiles) -> str:
    """Return the resolution of maps, with the conservative one in parentheses."""
    return f"{files.resolution:.1f} A ({files.conservative_resolution:.1f} A)"
