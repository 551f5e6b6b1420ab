"""The commands: each takes its options and calls one function.

Modules that import torch are imported when their command runs, so that help is fast.
"""

import functools
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dynamight_core.cli.app import command
from dynamight_core.cli.terminal import Terminal
from dynamight_core.errors import InputError
from dynamight_core.options import (
    AnalyseOptions,
    ControlOptions,
    DeformOptions,
    DemoOptions,
    DisplaceOptions,
    ExploreOptions,
    FieldsOptions,
    InferOptions,
    InputOptions,
    InvertOptions,
    ReconstructOptions,
    SelectOptions,
    SimulateOptions,
    StatesOptions,
    TrainOptions,
)
from dynamight_core.options.declare import Option
from dynamight_core.options.train import PARTICLES
from dynamight_core.options.words import command_line
from dynamight_core.reporter import Reporter

if TYPE_CHECKING:
    from dynamight_core.run import Run as FinishedRun

Star = Annotated[str, Option(PARTICLES)]
Run = Annotated[Path, Option("Folder of a trained run.")]
Overwrite = Annotated[bool, Option("Replace existing results.", level="basic")]


@command
def simulate(
    out: Annotated[Path, Option("Folder to write the data set to.")],
    options: SimulateOptions,
    *,
    overwrite: Overwrite = False,
) -> None:
    """Simulate particle images with known motion: particles.star, stack, consensus and half-maps, truth.npz."""
    from dynamight_core.devices import set_threads
    from dynamight_core.simulate.dataset import simulate as run_simulation

    set_threads(options.threads)
    if (out / "particles.star").exists() and not overwrite:
        raise InputError(f"{out} holds a data set already; give --overwrite to replace it")
    with Terminal() as reporter:
        files = run_simulation(options, out, reporter.step("simulating"))
        reporter.say(f"{options.particles} particles of {options.molecule} are in {files.particles}.")
        star, volume = (shlex.quote(str(path)) for path in (files.particles, files.consensus))
        reporter.say(f"Go on with: dynamight train {star} RUN --map {volume}")


@command
def check(
    star: Star,
    inputs: InputOptions,
    options: TrainOptions,
    *,
    images: Annotated[bool, Option("Read every image to find values that are not finite.", level="basic")] = True,
    cleaned: Annotated[
        Path | None,
        Option("Write the particles whose images are usable to this STAR file.", level="basic", metavar="FILE"),
    ] = None,
    suggest: Annotated[
        bool,
        Option("Find contrast, premultiplication and half-maps, and print the command to train with.", level="basic"),
    ] = False,
) -> None:
    """Read all input, print how it was interpreted, and estimate memory and time; exit 2 if a run could not start."""
    from dynamight_core.training.check import check_inputs
    from dynamight_core.training.suggest import suggest_inputs

    if suggest and not inputs.map:
        raise InputError("--suggest needs the consensus map; set --map")
    with Terminal() as reporter:
        if suggest:
            inputs = suggest_inputs(inputs, options)
            reporter.say(f"Suggested: {command_line('train', [star, 'RUN'], replace(inputs, star=''), options)}")
        check_inputs(inputs, options, images, reporter, cleaned)


@command
def train(
    star: Star,
    run: Annotated[Path, Option("Folder of the run.")],
    inputs: InputOptions,
    options: TrainOptions,
    *,
    resume: Annotated[bool, Option("Resume an interrupted run, or go on with more --epochs.", level="basic")] = False,
    overwrite: Annotated[bool, Option("Replace an existing run.", level="basic")] = False,
) -> None:
    """Estimate the deformation of every particle, both half-sets independently, and write RUN/particles.star."""
    if not inputs.map:
        raise InputError("--map is missing; give the consensus map of the particles")
    from dynamight_core.belonging import input_files
    from dynamight_core.judging.summary import summarise
    from dynamight_core.lock import writing
    from dynamight_core.run import refuse_inputs_within
    from dynamight_core.training.stage import train as run_training

    # Before the lock is written there.
    refuse_inputs_within(run, [inputs.star, *(path for _, path in input_files(inputs))])
    with Terminal() as reporter, writing(run):
        trained = run_training(inputs, options, run, resume, overwrite, reporter)
        summarise(trained, reporter=reporter)
        folder = shlex.quote(str(run))
        reporter.say(f"Go on with: dynamight reconstruct {folder}; dynamight analyse {folder}")


@command
def infer(
    run: Run,
    star: Star,
    out: Annotated[Path, Option("Folder of the new run.")],
    options: InferOptions,
    *,
    overwrite: Annotated[bool, Option("Replace an existing run in the folder.", level="basic")] = False,
) -> None:
    """Infer latents, motions and uncertainties of new particles with a trained run, and write them as a run."""
    from dynamight_core.judging.new_particles import infer_particles

    with Terminal() as reporter:
        infer_particles(_open(run, options), star, out, options, overwrite, reporter)
        folder = shlex.quote(str(out))
        reporter.say(f"Go on with: dynamight reconstruct {folder}; dynamight select {folder}")


@command
def invert(run: Run, options: InvertOptions) -> None:
    """Train the inverse deformation network of both half-sets, for reconstruct --through-inverse only."""
    from dynamight_core.reconstruction.stage import invert_run

    with Terminal() as reporter:
        invert_run(_open(run, options), options, reporter)


@command
def reconstruct(run: Run, options: ReconstructOptions, *, overwrite: Overwrite = False) -> None:
    """Reconstruct motion-corrected half-maps, the final map and the FSC."""
    if (run / "reconstruction" / "map.mrc").exists() and not overwrite:
        raise InputError(f"{run / 'reconstruction'} holds a map already; give --overwrite to replace it")
    from dynamight_core.analysis.judged import reconstruct_judged

    with Terminal() as reporter:
        reconstruct_judged(_open(run, options), options, reporter)


@command
def analyse(run: Run, options: AnalyseOptions) -> None:
    """Write RUN/analysis/report.html, and the motion as a map, atoms and a table for other programs."""
    from dynamight_core.analysis.stage import analyse_run

    with Terminal() as reporter:
        path = analyse_run(_open(run, options), options, reporter)
        reporter.say(f"Open {path} in a browser.")


@command
def states(
    run: Run,
    options: StatesOptions,
    *,
    out: Annotated[
        Path | None, Option("Output folder. RUN/analysis/states/NAME if omitted.", level="basic", metavar="FOLDER")
    ] = None,
) -> None:
    """Write maps and a movie of states: along a motion or path, or at clusters, coordinates or latents."""
    from dynamight_core.analysis.state_maps import serve_states, write_states
    from dynamight_core.analysis.states import choose_states
    from dynamight_core.run import record_stage

    if options.listen:
        serve_states(_open(run, options), sys.stdin, functools.partial(print, flush=True), options.half)
        return
    with Terminal() as reporter:
        opened = _open(run, options)
        write_states(opened, choose_states(opened, options), options, out, reporter)
        record_stage(opened, "states", options)


@command
def displace(
    run: Run,
    options: DisplaceOptions,
    *,
    points: Annotated[
        Path, Option("Points in the consensus frame (A): .npy of shape (m, 3), .pdb or .cif.", metavar="FILE")
    ],
    out: Annotated[
        Path, Option("Output .npz file: positions of shape (n, m, 3) in A, half, rows, points.", metavar="FILE")
    ],
) -> None:
    """Displace points or an atomic model by the deformation of each particle, or to states."""
    from dynamight_core.analysis.displace import displace as run_displace
    from dynamight_core.devices import choose_device
    from dynamight_core.run import record_stage

    with Terminal() as reporter:
        opened = _open(run, options)
        for model in opened.models:
            model.to(choose_device(options.device))
        run_displace(opened, points, out, options, reporter)
        record_stage(opened, "displace", options, points=str(points), out=str(out))


@command
def fields(
    run: Run,
    options: FieldsOptions,
    *,
    out: Annotated[
        Path | None, Option("Output folder. RUN/analysis/fields if omitted.", level="basic", metavar="FOLDER")
    ] = None,
) -> None:
    """Write deformation fields of motions, states or particles, with uncertainties: .npz, .mrc and arrows."""
    from dynamight_core.analysis.fields import write_fields
    from dynamight_core.run import record_stage

    with Terminal() as reporter:
        opened = _open(run, options)
        write_fields(opened, options, out, reporter)
        record_stage(opened, "fields", options)


@command
def deform(
    field: Annotated[Path, Option("Deformation field (.npz or .mrc) of dynamight fields.")],
    source: Annotated[Path, Option("Map (.mrc) or atomic model (.pdb, .cif) in the frame of the field.")],
    options: DeformOptions,
    *,
    out: Annotated[Path, Option("Deformed map (.mrc) or model (.cif).", metavar="FILE")],
) -> None:
    """Apply a deformation field to a map or to an atomic model."""
    from dynamight_core.analysis.deform import deform as run_deform
    from dynamight_core.devices import set_threads

    set_threads(options.threads)
    with Terminal() as reporter:
        run_deform(field, source, out, options, reporter)


@command
def select(
    run: Run,
    options: SelectOptions,
    *,
    name: Annotated[str, Option("Name of the STAR file in RUN/analysis/selections.", level="basic")] = "selection",
    out: Annotated[
        Path | None, Option("Path of the STAR file, instead of --name.", level="basic", metavar="FILE")
    ] = None,
) -> None:
    """Write a STAR file of particles selected by motion, uncertainty, conformation, cluster or half-set."""
    from dynamight_core.analysis.select import write_selection
    from dynamight_core.run import record_stage

    with Terminal() as reporter:
        opened = _open(run, options)
        write_selection(opened, options, name, out, reporter)
        record_stage(opened, "select", options, name=name)


@command
def control(run: Run, options: ControlOptions) -> None:
    """Run a control for model bias and write its verdict to RUN/analysis/controls."""
    from dynamight_core.analysis.controls.stage import control_run

    with Terminal() as reporter:
        control_run(_open(run, options), options, reporter)


@command
def explore(run: Run, options: ExploreOptions) -> None:
    """Explore a run in a browser: landscape, conformations, subsets and movies."""
    from dynamight_core.analysis.explorer.napari_view import view_in_napari
    from dynamight_core.analysis.explorer.server import serve
    from dynamight_core.analysis.explorer.session import Explorer

    # No progress bars, which would break the address on a terminal.
    reporter = Reporter(functools.partial(print, flush=True))
    model = None if options.model is None else Path(options.model)
    explorer = Explorer(_open(run, options), model, options.origin, [Path(table) for table in options.table], reporter)
    if options.viewer == "napari":
        view_in_napari(explorer)
    else:
        serve(explorer, options.host, options.port, options.browser, reporter)


@command
def bundle(
    run: Annotated[Path, Option("Folder of a run, finished or not.")],
    *,
    out: Annotated[
        Path | None, Option("File to write. RUN-bundle.zip if omitted.", level="basic", metavar="FILE")
    ] = None,
) -> None:
    """Collect what a report of a fault needs in one file, without images, maps, models and particles."""
    from dynamight_core.analysis.bundle import write_bundle

    path = write_bundle(run, out)
    print(f"{path} has options, commands, metrics, tables, versions and names of files. Look at it before you send it.")


@command
def demo(
    out: Annotated[Path, Option("Folder for the data set and the run.")],
    options: DemoOptions,
    *,
    overwrite: Overwrite = False,
) -> None:
    """Simulate a molecule with a hinge, run every stage and compare with the truth; minutes on two CPU cores."""
    from dynamight_core.demo import run_demo

    with Terminal() as reporter:
        run_demo(out, options, overwrite, reporter)


@command
def options() -> None:
    """Print every option as JSON schema, for other programs; added decoders and loss terms are included."""
    from dynamight_core.options.schema import make_schema

    print(json.dumps(make_schema(), indent=1, ensure_ascii=False))


def _open(run: Path, options: Any) -> "FinishedRun":
    """Return the finished run of a folder; `options` may choose threads."""
    from dynamight_core.devices import set_threads
    from dynamight_core.run import Run as FinishedRun

    set_threads(getattr(options, "threads", None))
    return FinishedRun(run)
