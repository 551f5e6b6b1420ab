"""``dynamight demo``: a molecule with a hinge, from simulated images to a report, compared with the truth."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dynamight_core.analysis.displace import Displacer
from dynamight_core.analysis.judged import reconstruct_judged
from dynamight_core.analysis.stage import analyse_run
from dynamight_core.analysis.state_maps import write_states
from dynamight_core.analysis.states import states_along_motion
from dynamight_core.errors import InputError
from dynamight_core.files import read_map
from dynamight_core.imaging.correlation import fourier_shell_correlation, resolution_at
from dynamight_core.judging.summary import summarise
from dynamight_core.lock import writing
from dynamight_core.options import (
    AnalyseOptions,
    DemoOptions,
    InputOptions,
    ReconstructOptions,
    SimulateOptions,
    StatesOptions,
    TrainOptions,
)
from dynamight_core.reconstruction.stage import Reconstruction
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run
from dynamight_core.simulate.dataset import simulate
from dynamight_core.simulate.truth import Truth, load_truth
from dynamight_core.training.stage import train

# Threshold of the FSC with the truth, to which FSC 0.143 between half-maps corresponds.
_TRUTH_THRESHOLD = 0.5


def run_demo(
    out: str | Path, options: DemoOptions | None = None, overwrite: bool = False, reporter: Reporter = PRINT
) -> Run:
    """Simulate, train, reconstruct, analyse, and compare the result with the truth.

    Parameters
    ----------
    out
        folder of the data set (``out/data``) and the run (``out/run``).
    options
        of the demonstration.
    overwrite
        whether to replace an earlier demonstration.
    reporter
        receives messages and progress.

    Raises
    ------
    InputError
        if the folder already contains a demonstration.
    """
    options = options or DemoOptions()
    out = Path(out)
    data, run_folder = out / "data", out / "run"
    if (data / "particles.star").exists() and not overwrite:
        raise InputError(f"{out} already contains a demonstration; use --overwrite to replace it")
    started = time.monotonic()

    def stage(title: str) -> None:
        reporter.say(f"[{time.monotonic() - started:4.0f} s] {title}")

    stage(f"Simulating {options.particles} images of a molecule whose small domain rotates by up to 20 degrees.")
    files = simulate(
        SimulateOptions(particles=options.particles, box=options.box, pixel_size=options.pixel_size, seed=options.seed),
        data,
        reporter.step("simulating"),
    )
    truth = load_truth(files.truth)
    stage("Training deformations on the images and their consensus map.")
    inputs = InputOptions(
        star=str(files.particles), map=str(files.consensus), half_maps=[str(path) for path in files.half_maps]
    )
    training = TrainOptions(
        n_gaussians=options.n_gaussians, seed=options.seed, device=options.device, threads=options.threads
    )
    if options.epochs is not None:
        training = replace(training, epochs=options.epochs)
    with writing(run_folder):
        trained = train(inputs, training, run_folder, overwrite=overwrite, reporter=reporter)
        run = summarise(trained, reporter=reporter)
    trained.data.close()
    stage("Reconstructing, with motion corrected and without deformation.")
    maps = reconstruct_judged(
        run, ReconstructOptions(device=options.device, threads=options.threads, seed=options.seed), reporter
    )
    stage("Writing states along motion 1, and the report.")
    chosen = StatesOptions(use_unsupported_motion=True)
    states = write_states(run, states_along_motion(run, 1), chosen, reporter=reporter)
    report = analyse_run(run, AnalyseOptions(threads=options.threads), reporter)
    stage("Done. The result, compared with the truth of the simulation:")
    for line in findings(run, truth, maps):
        reporter.say(f"  {line}")
    reporter.say("Open:")
    for path, what in (
        (report, "report (browser)"),
        (states / "movie.gif", "movie of motion 1"),
        (maps.deformed.final, "map with motion corrected (ChimeraX); rigid/map.mrc is without deformation"),
        (run.path / "particles.star", "latents, coordinates and uncertainty of every particle"),
    ):
        reporter.say(f"  {path}   {what}")
    return run


def findings(run: Run, truth: Truth, maps: Reconstruction) -> list[str]:
    """Return lines that compare motion and resolution with the truth."""
    motion = compare_motion(run, truth)
    lines = [
        f"Hinge angle: correlation with the truth {motion['correlation']:.2f} (0.90 is the limit at this noise level).",
        f"Motion of the small domain: {motion['moving_rms']:.1f} A rms, true {motion['true_rms']:.1f} A, error "
        f"{motion['moving_error']:.1f} A. Motion of the large domain: {motion['static_error']:.1f} A, true 0.",
        f"Verdict: {run.summary['verdict']['verdict']}.",
    ]
    rigid = maps.rigid
    if rigid is None:
        return lines
    lines.append(f"Resolution (half-maps, FSC 0.143): {rigid.resolution:.1f} -> {maps.deformed.resolution:.1f} A.")
    moving, static = (
        [truth_resolution(truth, Path(files.final), domain) for files in (rigid, maps.deformed)] for domain in (1, 0)
    )
    lines.append(
        f"With the true map (FSC {_TRUTH_THRESHOLD}): small domain {moving[0][0]:.1f} -> {moving[1][0]:.1f} A "
        f"(mean FSC {moving[0][1]:.3f} -> {moving[1][1]:.3f}), large domain {static[0][0]:.1f} -> "
        f"{static[1][0]:.1f} A ({static[0][1]:.3f} -> {static[1][1]:.3f})."
    )
    return lines


def compare_motion(run: Run, truth: Truth, n_atoms: int = 1000) -> dict[str, float]:
    """Compare decoded and true displacements of a subset of the atoms, about their means over particles.

    Returns
    -------
    dict
        `correlation` of the hinge angle; rms displacements (A) of the small domain `moving_rms`, `true_rms`; rms
        errors `moving_error`, `static_error`.
    """
    molecule = truth.molecule
    chosen = torch.linspace(0, len(molecule.positions) - 1, min(n_atoms, len(molecule.positions))).long()
    points, moving = molecule.positions[chosen], molecule.moving[chosen] > 0
    decoded = torch.cat(list(Displacer(run, points).chunks(np.arange(len(truth)))))
    decoded = decoded - decoded.mean(0)
    true = truth.positions(slice(None))[:, chosen]
    true = true - true.mean(0)
    # Least-squares angle of each particle.
    axis = molecule.axis_directions[0]
    lever = torch.linalg.cross(axis.expand_as(points), points - molecule.axis_points[0])[moving]
    angles = (decoded[:, moving] * lever).sum((1, 2)) / lever.square().sum()
    difference = (decoded - true).square().sum(-1)
    return {
        "correlation": float(torch.corrcoef(torch.stack([angles, truth.angles[:, 0]]))[0, 1]),
        "moving_rms": float(decoded[:, moving].square().sum(-1).mean().sqrt()),
        "true_rms": float(true[:, moving].square().sum(-1).mean().sqrt()),
        "moving_error": float(difference[:, moving].mean().sqrt()),
        "static_error": float(difference[:, ~moving].mean().sqrt()),
    }


def truth_resolution(truth: Truth, path: Path, domain: int) -> tuple[float, float]:
    """Return resolution (A) and mean FSC of a map with the truth at angle 0, in a mask around one domain."""
    half_maps = [path.with_name(f"half{half}_unfil.mrc") for half in (1, 2)]
    volume = torch.from_numpy(sum(read_map(half)[0] for half in half_maps))
    curve = fourier_shell_correlation(volume, truth.true_map(0.0), truth.domain_mask(domain))
    resolution = resolution_at(curve, truth.box, truth.pixel_size, _TRUTH_THRESHOLD)
    return resolution, float(curve[1:].mean())
