"""The command line: every command parses its options and calls one function.

Options that belong to a dataclass are not written down here: `_command` takes them, with their types and
defaults, from its fields. Modules that import torch are imported when their command runs, so that help is fast.
"""

import contextlib
import functools
import importlib
import inspect
import json
import re
import shlex
import sys
import tempfile
import time
import traceback
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dynamight_core.errors import InputError, option_name
from dynamight_core.reporter import Reporter
from dynamight_core.version import __version__

# Words for people where the dataclass's own line is written for programmers.
HELP = {
    "star": "Particles: STAR file of RELION 3.0 to 5 with poses and CTFs.",
    "map": "Consensus map of the particles (.mrc), same box and pixel size.",
    "half_maps": "Two half-maps of the consensus; each half starts from its own.",
    "mask": "Map from 0 to 1: where motion is allowed. Everywhere if left out.",
    "bodies": "Masks of the rigid bodies that the molecule consists of, two or more, instead of a decoder.",
    "start_from": "Finished run of the same particles: go on from its models, with these options, instead of the map.",
    "atomic_model": "PDB or mmCIF file that Gaussians and the distances they keep are taken from. Biases the map.",
    "fit": "Fit the atomic model to the map as a rigid body, near where it is.",
    "origin": "Where the atomic model's coordinates are zero: centre, corner (first voxel), map (its header) or auto.",
    "project": "Folder that image paths in the STAR are relative to. Its own or one of its parents if left out.",
    "particle_diameter": "Diameter of the particle (A). 0.9 of the box if left out.",
    "working_box": "Pixels that images are Fourier-cropped to for training. Chosen by the Gaussians if left out.",
    "invert_contrast": "Particles are dark: change the sign of the images.",
    "premultiplied": "Images were multiplied by their CTF. As the STAR says if left out.",
    "normalise": "Noise normalisation: image (each by its own), set (one for all) or none.",
    "storage": "Where prepared images are kept: auto, memory, device or file.",
    "n_gaussians": "Gaussians of each half's model; 1 or 2 per residue.",
    "width_classes": "Classes of Gaussian width.",
    "threshold": "Threshold of the consensus map, low-passed at 15 A (map units). Automatic if left out.",
    "initial_resolution": "Low-pass filter of the start maps (A): what both halves share where they start from one.",
    "n_latents": "Dimensions of the latent space.",
    "decoder": "basis (learned deformation basis) or coordinate (the paper's coordinate network).",
    "epochs": "Epochs after the warm-up.",
    "warm_up_epochs": "Epochs in which the Gaussians are fitted to the images without deformation.",
    "encoder_epochs": "First epochs that train encoder and decoder together. 0 starts from motions to first order.",
    "latent_refinement": "Infer each particle's latent with the decoder fixed; without, all epochs train the encoder.",
    "inference_interval": "Epochs between two rounds of latent inference.",
    "batch_size": "Particles per step.",
    "learning_rate": "Adam's step of the decoder.",
    "encoder_learning_rate": "Adam's step of the encoder.",
    "gaussian_learning_rate": "Adam's step of the Gaussians' positions (A).",
    "kl_weight": "Weight of the Kullback-Leibler term in encoder epochs; 1 is the full evidence bound.",
    "motion_resolution": "Filter of images while motion is learned (A); 0: none. Where they show most if left out.",
    "regularisation": "fixed (--stiffness) or dynamic (the paper's lambda, --regularisation-ratio).",
    "stiffness": "Weight of the distance-keeping and repulsion terms (1/A^2, per particle), if fixed. Less where "
    "images tell little.",
    "regularisation_ratio": "Share of the gradient norm that regularisation gets, if dynamic.",
    "rigidity": "Weight of keeping distances up to 25 A inside parts that move as one (1/A^2, per particle).",
    "sparse_motion": "Weight of the mean displacement (1/A), ramped in over the second third of the epochs.",
    "gaussian_amplitudes": "Give each Gaussian an amplitude of its own, shared by all particles.",
    "refits": "How often the Gaussians are filled anew into the half's own deformed map.",
    "refit_resolution": "Low-pass filter of that map (A).",
    "reference_interval": "Epochs between two reference updates.",
    "reference_epochs": "Epochs of a reference update, in which only the Gaussians move.",
    "stop_after_rises": "Stop when an epoch's data loss has risen over the one before so many times in all.",
    "validation_fraction": "Share of each half's particles that trains no decoder.",
    "validation_trains_encoders": "Let validation particles train the encoders (the paper's way).",
    "refine_poses": "Let orientations and shifts follow the images; the change is written out.",
    "n_motions": "Principal motions kept.",
    "seed": "Same seed, same machine, same numbers.",
    "device": "auto (a GPU if there is one), auto:N (GPU N if there is any), cpu, cuda, or the number of a GPU.",
    "threads": "CPU threads. All that the process may use if left out.",
}
# A list on the command line is an option given several times; these are pairs.
_PAIRS = {"half_maps": tuple[str, str]}


@dataclass
class _Settings:
    """What holds for the command that runs.

    Whether tracebacks go to the terminal, where its end is told, and the version that who started it counts on.
    """

    debug: bool = False
    status_file: Path | None = None
    required_version: str | None = None


_settings = _Settings()
_commands: dict[str, tuple[Callable, dict[str, str]]] = {}


def _command(name: str | None = None, **option_classes: str):
    """Register a command; parameters named in `option_classes` take dataclasses, "module:Class", by their fields."""

    def register(function: Callable) -> Callable:
        _commands[name or function.__name__] = (function, option_classes)
        return function

    return register


def make_app(only: list[str] | None = None) -> typer.Typer:
    """Return the program.

    Parameters
    ----------
    only
        words of the command line: commands not among them are listed, but without the options of their
        dataclasses, some of which lie beside code that imports torch. All are complete if None.
    """
    app = typer.Typer(
        name="dynamight",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Molecular motions from cryo-EM particle images, and the sharper maps that follow from them.",
    )
    app.callback()(_main_options)
    for name, (function, option_classes) in _commands.items():
        wanted = option_classes if only is None or name in only else {}
        app.command(name)(_guarded(name, _with_fields(function, wanted)))
    return app


def main() -> None:
    """Run the program on the words of the command line and exit."""
    with contextlib.suppress(AttributeError):
        # Messages hold Greek letters and units; a terminal that cannot show them should not end a run.
        sys.stdout.reconfigure(errors="replace")
        sys.stderr.reconfigure(errors="replace")
    words = spread_lists(sys.argv[1:])
    make_app(words)(words)


def spread_lists(words: list[str]) -> list[str]:
    """Return the words of a command line with an option before each mask that follows --bodies.

    Typer's options take a fixed number of values: `--bodies a.mrc b.mrc` becomes `--bodies a.mrc --bodies b.mrc`.
    """
    spread, listing = [], False
    for word in words:
        another = listing and word.endswith((".mrc", ".map"))
        if another and spread[-1] != "--bodies":
            spread.append("--bodies")
        listing = another or word == "--bodies"
        spread.append(word)
    return spread


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"dynamight {__version__}")
        raise typer.Exit()


def _main_options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of a failure.")] = False,
    status_file: Annotated[
        Path | None,
        typer.Option(help="Write here how the command ended, for programs that start it: JSON, exit_code and message."),
    ] = None,
    require_version: Annotated[
        str | None, typer.Option(help="Refuse to run if this is another version, for programs that start it.")
    ] = None,
) -> None:
    _settings.debug, _settings.status_file, _settings.required_version = debug, status_file, require_version


# ---------------------------------------------------------------------------------------------- the commands

Run = Annotated[Path, typer.Argument(help="Folder of a trained run.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


@_command(options="dynamight_core.options:SimulateOptions")
def simulate(
    out: Annotated[Path, typer.Argument(help="Folder to write the data set to.", show_default=False)],
    options,
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


@_command(inputs="dynamight_core.config:InputOptions", options="dynamight_core.config:TrainOptions")
def check(
    star: Annotated[str, typer.Argument(help=HELP["star"], show_default=False)],
    inputs,
    options,
    images: Annotated[bool, typer.Option(help="Read every image and look for values that are not finite.")] = True,
) -> None:
    """Read everything, say what was understood, estimate memory and time; exit 2 if a run could not start."""
    from dynamight_core.training.check import check_inputs

    with Terminal() as reporter:
        check_inputs(inputs, options, images, reporter)


@_command(inputs="dynamight_core.config:InputOptions", options="dynamight_core.config:TrainOptions")
def train(
    star: Annotated[str, typer.Argument(help=HELP["star"], show_default=False)],
    run: Annotated[Path, typer.Argument(help="Folder of the run.", show_default=False)],
    inputs,
    options,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that is there.")] = False,
) -> None:
    """Learn latents and deformations of both half-sets; write RUN/particles.star and say what was found."""
    if not inputs.map:
        raise InputError("--map is missing; give the consensus map of the particles")
    from dynamight_core.judging.summary import summarise
    from dynamight_core.training.stage import train as run_training

    with Terminal() as reporter:
        trained = run_training(inputs, options, run, resume, overwrite, reporter)
        summarise(trained, reporter=reporter)
        folder = shlex.quote(str(run))
        reporter.say(f"Go on with: dynamight reconstruct {folder}; dynamight analyse {folder}")


@_command(options="dynamight_core.options:InvertOptions")
def invert(run: Run, options) -> None:
    """Train the inverse field of both halves (only needed by reconstruct --through-inverse)."""
    from dynamight_core.reconstruction.stage import invert_run

    with Terminal() as reporter:
        invert_run(_open(run, options), options, reporter)


@_command(options="dynamight_core.options:ReconstructOptions")
def reconstruct(run: Run, options, overwrite: Overwrite = False) -> None:
    """Reconstruct both half-maps with motion corrected, the final map and the FSC."""
    if (run / "reconstruction" / "map.mrc").exists() and not overwrite:
        raise InputError(f"{run / 'reconstruction'} holds a map already; give --overwrite to replace it")
    from dynamight_core.reconstruction.stage import reconstruct_run

    with Terminal() as reporter:
        reconstruct_run(_open(run, options), options, reporter)


@_command(options="dynamight_core.options:AnalyseOptions")
def analyse(run: Run, options) -> None:
    """Write RUN/analysis/report.html, and for other programs the motion as a map, as atoms and as a table."""
    from dynamight_core.analysis.stage import analyse_run

    with Terminal() as reporter:
        path = analyse_run(_open(run, options), options, reporter)
        reporter.say(f"Open {path} in a browser.")


@_command(options="dynamight_core.options:StatesOptions")
def states(
    run: Run,
    options,
    out: Annotated[Path | None, typer.Option(help="Folder. RUN/analysis/states/NAME if left out.")] = None,
) -> None:
    """Write maps and a movie along a motion (default: the first) or a path, at clusters, coordinates or latents."""
    from dynamight_core.analysis.state_maps import serve_states, write_states
    from dynamight_core.analysis.states import choose_states
    from dynamight_core.run import record_stage

    if options.listen:
        serve_states(_open(run, options), sys.stdin, functools.partial(print, flush=True), options.half)
        return
    with Terminal() as reporter:
        opened = _open(run, options)
        chosen = choose_states(opened, options)
        write_states(
            opened,
            chosen,
            out,
            options.half,
            options.movie,
            options.maps,
            reporter,
            options.difference,
            options.full,
        )
        record_stage(opened, "states", options)


@_command(options="dynamight_core.options:DisplaceOptions")
def displace(
    run: Run,
    options,
    points: Annotated[
        Path, typer.Option(help="Points in the frame of the consensus map (A): .npy (m, 3), .pdb or .cif.")
    ],
    out: Annotated[Path, typer.Option(help="Name of the .npz: positions (n, m, 3) A, half, rows, points.")],
) -> None:
    """Write the positions of points or atoms under each particle's deformation, or at states."""
    from dynamight_core.analysis.displace import displace as run_displace
    from dynamight_core.devices import choose_device
    from dynamight_core.run import record_stage

    with Terminal() as reporter:
        opened = _open(run, options)
        for model in opened.models:
            model.to(choose_device(options.device))
        run_displace(opened, points, out, options, reporter)
        record_stage(opened, "displace", options, points=str(points), out=str(out))


@_command(options="dynamight_core.options:SelectOptions")
def select(
    run: Run,
    options,
    name: Annotated[str, typer.Option(help="Name of the file in RUN/analysis/selections.")] = "selection",
    out: Annotated[Path | None, typer.Option(help="Path of the STAR file instead.")] = None,
) -> None:
    """Write a STAR file of particles by motion, error, conformation, region, cluster or half."""
    from dynamight_core.analysis.select import write_selection
    from dynamight_core.run import record_stage

    with Terminal() as reporter:
        opened = _open(run)
        write_selection(opened, options, name, out, reporter)
        record_stage(opened, "select", options, name=name)


@_command(options="dynamight_core.options:ControlOptions")
def control(
    run: Run,
    options,
    kind: Annotated[
        str,
        typer.Option(
            help="shuffled-latents (deformations permuted among particles: does motion improve the map), "
            "noise-particles (does the model make a map of noise), held-out (does deformation improve the map of "
            "particles that trained nothing), or wrong-model (does the map follow the atomic model or the data).",
            show_default=False,
        ),
    ],
) -> None:
    """Make a control experiment that tells bias from truth; write its verdict to RUN/analysis/controls."""
    from dynamight_core.analysis.controls.stage import control_run

    with Terminal() as reporter:
        control_run(_open(run, options), options, reporter)


@_command()
def explore(
    run: Run,
    port: Annotated[int, typer.Option(help="Port of the page; 0 takes a free one.")] = 8050,
    host: Annotated[
        str, typer.Option(help="Address of this machine to listen at; others than the default let other machines in.")
    ] = "127.0.0.1",
    browser: Annotated[bool, typer.Option(help="Open the page in a browser, where there is a screen.")] = True,
    model: Annotated[
        Path | None, typer.Option(help="Atomic model in the frame of the consensus map (.pdb, .cif), moved along.")
    ] = None,
    origin: Annotated[
        str, typer.Option(help="Where the model's coordinates are zero: as in dynamight displace.")
    ] = "auto",
    table: Annotated[
        list[Path] | None,
        typer.Option(
            help="CSV of values to colour particles by, with a column rlnImageName or particle (row of particles.star, "
            "from 1), or a line for each; may be given several times."
        ),
    ] = None,
    viewer: Annotated[
        str, typer.Option(help="browser, or napari: a window with volume, Gaussians, field and particles as layers.")
    ] = "browser",
    threads: Annotated[int | None, typer.Option(help="CPU threads. All that the process may use if left out.")] = None,
) -> None:
    """Show a run in a page on this machine: landscape, conformations, subsets, movies; writes to RUN/analysis."""
    from dynamight_core.analysis.explorer.napari_view import view_in_napari
    from dynamight_core.analysis.explorer.server import serve
    from dynamight_core.analysis.explorer.session import Explorer
    from dynamight_core.devices import set_threads

    set_threads(threads)
    # No progress bars, which would break the address on a terminal.
    reporter = Reporter(functools.partial(print, flush=True))
    if viewer not in ("browser", "napari"):
        raise InputError(f"--viewer is '{viewer}'; choose browser or napari")
    explorer = Explorer(_open(run), model, origin, table or (), reporter)
    if viewer == "napari":
        view_in_napari(explorer)
    else:
        serve(explorer, host, port, browser, reporter)


@_command(options="dynamight_core.options:DemoOptions")
def demo(
    out: Annotated[Path, typer.Argument(help="Folder for the data set and the run.", show_default=False)],
    options,
    overwrite: Overwrite = False,
) -> None:
    """Simulate a molecule with a hinge, run every stage on it and say what was found; minutes on two CPU cores."""
    from dynamight_core.demo import run_demo

    with Terminal() as reporter:
        run_demo(out, options, overwrite, reporter)


def _open(run: Path, options=None):
    """Return the finished run of a folder; `options` may choose threads."""
    from dynamight_core.devices import set_threads
    from dynamight_core.run import Run as FinishedRun

    set_threads(getattr(options, "threads", None))
    return FinishedRun(run)


# ------------------------------------------------------------------------------------ dataclasses as options


def _with_fields(function: Callable, option_classes: dict[str, str]) -> Callable:
    """Return `function` with the fields of dataclasses as keyword parameters in place of the dataclasses."""
    own = inspect.signature(function).parameters
    plain = {name: p for name, p in own.items() if p.annotation is not inspect.Parameter.empty}
    resolved = {parameter: _load_class(path) for parameter, path in option_classes.items()}
    parameters = list(plain.values())
    for option_class in resolved.values():
        parameters += [_field_parameter(option_class, f) for f in fields(option_class) if f.name not in own]

    def call(**values):
        arguments = {name: values[name] for name in plain}
        for parameter, option_class in resolved.items():
            given = {f.name: _plain(values[f.name]) for f in fields(option_class) if f.name in values}
            # An option that may be repeated and is not there is None here, and the dataclass's empty list there.
            given = {name: value for name, value in given.items() if value is not None}
            arguments[parameter] = option_class(**given)
        return function(**arguments)

    call.__doc__ = function.__doc__
    call.__name__ = function.__name__
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    call.__signature__ = inspect.Signature(parameters)
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    return call


def _load_class(path: str) -> type:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def _field_parameter(option_class: type, field) -> inspect.Parameter:
    """Return the command-line option of a dataclass's field."""
    default = field.default if field.default_factory is MISSING else (field.default_factory() or None)
    kind = _PAIRS.get(field.name) or _without_none(typing.get_type_hints(option_class)[field.name])
    if default is None:
        kind = kind | None
    text = HELP.get(field.name) or _docstring_of(option_class).get(field.name, "")
    # InputOptions' own names only: a mask of the FSC is another mask.
    if option_class.__name__ not in ("InputOptions", "TrainOptions"):
        text = _docstring_of(option_class).get(field.name) or text
    panel = {"InputOptions": "Input", "TrainOptions": "Training"}.get(option_class.__name__, "Options")
    names = [option_name(field.name)]
    if kind in (bool, bool | None) and default is not True and default is not None:
        # A flag that is off needs no opposite.
        option = typer.Option(*names, help=text, rich_help_panel=panel)
    else:
        # Random generators take no others.
        limits = {"min": 0, "max": 2**32 - 1} if field.name == "seed" else {}
        option = typer.Option(help=text, rich_help_panel=panel, **limits)
    annotation = Annotated[kind, option]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _without_none(kind):
    """Return X of X | None."""
    if typing.get_origin(kind) not in (types.UnionType, typing.Union):
        return kind
    rest = [part for part in typing.get_args(kind) if part is not type(None)]
    return rest[0] if len(rest) == 1 else typing.Union[tuple(rest)]  # noqa: UP007 built at run time


def _plain(value):
    """Return a list for a tuple: config.yaml and JSON have no tuples."""
    return list(value) if isinstance(value, tuple) else value


def _docstring_of(option_class: type) -> dict[str, str]:
    """Return what a dataclass's numpy docstring says of each field, as sentences."""
    text = inspect.cleandoc(option_class.__doc__ or "").partition("Parameters\n----------\n")[2]
    described = {}
    for names, lines in re.findall(r"^(\w[\w, ]*)\n((?:[ ]+.*\n?)+)", text, re.MULTILINE):
        sentence = " ".join(line.strip() for line in lines.splitlines())
        sentence = sentence[:1].upper() + sentence[1:]
        for name in names.split(","):
            described[name.strip()] = sentence
    return described


# --------------------------------------------------------------------------------------- failures and progress


def _outcome(name: str, function: Callable, values: dict) -> tuple[int, str]:
    """Run a command and return its exit code and, if that is not 0, the sentence for the user."""
    try:
        _check_version()
        function(**values)
    except (InputError, PermissionError, NotADirectoryError) as error:
        if isinstance(error, OSError):
            folder = Path(error.filename or ".").parent
            error = f"cannot use {folder}: {error.strerror.lower()}; choose a folder you may read and write"
        if _settings.debug:
            traceback.print_exc()
        return 2, f"Error: {error}"
    except KeyboardInterrupt:
        cure = "go on with --resume" if name == "train" else "run the command again"
        return 130, f"Stopped; {cure}."
    except typer.Exit as end:
        return end.exit_code, ""
    except Exception as error:
        where = "above"
        if _settings.debug:
            traceback.print_exc()
        else:
            where = f"in {_write_log(values.get('run') or values.get('out'))}"
        reason = str(error).strip().splitlines()
        sentence = f"{type(error).__name__}{': ' + reason[0] if reason else ''}"
        return 1, f"Error: dynamight {name} failed ({sentence}); the traceback is {where}."
    return 0, ""


def _check_version() -> None:
    wanted = _settings.required_version
    if wanted not in (None, __version__):
        raise InputError(
            f"dynamight-core {wanted} is needed, but the environment {sys.prefix} has {__version__}; install that "
            "version, or activate an environment which has it"
        )


def _guarded(name: str, function: Callable) -> Callable:
    """Return `function` ending the program as users and scripts expect: 2 for bad input, 1 for a failure."""

    def run(**values):
        code, message = _outcome(name, function, values)
        if code:
            print(message, file=sys.stderr)
        if _settings.status_file is not None:
            from dynamight_core.files import atomic_path

            with atomic_path(_settings.status_file) as path:
                path.write_text(json.dumps({"exit_code": code, "message": message.removeprefix("Error: ")}))
        if code:
            raise typer.Exit(code)

    run.__doc__, run.__name__ = function.__doc__, function.__name__
    run.__signature__, run.__annotations__ = function.__signature__, function.__annotations__
    return run


def _write_log(folder: Path | None) -> Path:
    """Write the traceback to ``error.log`` in a run's folder, or in the temporary one if there is none."""
    text = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {' '.join(sys.argv)}\n{traceback.format_exc()}"
    if folder is not None and Path(folder).is_dir():
        with contextlib.suppress(OSError):
            path = Path(folder) / "error.log"
            path.write_text(text)
            return path
    with tempfile.NamedTemporaryFile("w", prefix="dynamight-", suffix=".log", delete=False) as file:
        file.write(text)
    return Path(file.name)


class Terminal:
    """Says lines and shows progress: bars on a terminal, a line for every tenth in a log."""

    # Seconds between two lines of one stage in a log.
    quiet = 3.0

    def __init__(self):
        self.console = Console(highlight=False, soft_wrap=True)
        self._bars = None
        if self.console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._bars.start()
        self._tasks: dict[str, int] = {}
        self._said: dict[str, tuple[int, float]] = {}

    def say(self, line: str) -> None:
        """Print a line for the user."""
        self.console.print(line, markup=False)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` of a stage are done."""
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total)
            self._bars.update(self._tasks[stage], completed=done, total=total)
            if done >= total:
                self._bars.remove_task(self._tasks.pop(stage))
            return
        now = time.monotonic()
        tenth = 10 * done // max(1, total)
        said, when = self._said.setdefault(stage, (0, now))
        if tenth > said and now - when >= self.quiet:
            self.say(f"{stage}: {done} of {total}")
            self._said[stage] = (tenth, now)
        if done >= total:
            self._said.pop(stage, None)

    def __enter__(self) -> Reporter:
        return Reporter(self.say, self.progress)

    def __exit__(self, *error) -> None:
        if self._bars is not None:
            self._bars.stop()


if __name__ == "__main__":
    main()
