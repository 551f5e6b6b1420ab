"""The stages of the command line as functions."""

from pathlib import Path
from typing import Any

from dynamight_core.analysis.judged import reconstruct_judged
from dynamight_core.analysis.stage import analyse_run
from dynamight_core.api.arguments import PathLike, dataclasses_of, python_words
from dynamight_core.api.maps import Maps
from dynamight_core.api.run import Run
from dynamight_core.devices import set_threads
from dynamight_core.errors import InputError
from dynamight_core.judging.new_particles import infer_particles
from dynamight_core.judging.summary import summarise
from dynamight_core.lock import writing
from dynamight_core.options import AnalyseOptions, InferOptions, InputOptions, ReconstructOptions, TrainOptions
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.training.stage import train as train_halves


def train(
    star: PathLike,
    run: PathLike,
    *,
    map: PathLike,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter = PRINT,
    **options: Any,
) -> "Run":
    """Learn latents and deformations of both half-sets, as ``dynamight train`` does.

    Parameters
    ----------
    star
        STAR file of the particles.
    run
        folder of the run.
    map
        consensus map of the particles.
    resume
        whether to resume an interrupted run.
    overwrite
        whether to replace a run in this folder.
    reporter
        takes lines for the user, and progress; `QUIET` takes none.
    options
        fields of `InputOptions` and `TrainOptions`, the options of ``dynamight train`` with underscores:
        ``n_gaussians=5000``.

    Raises
    ------
    InputError
        if the input or an option cannot be used, or the folder holds a run already.
    """
    with python_words(), writing(run):
        inputs, training = dataclasses_of({"star": star, "map": map, **options}, InputOptions, TrainOptions)
        trained = train_halves(inputs, training, Path(run), resume, overwrite, reporter)
        try:
            summarise(trained, reporter)
        finally:
            trained.data.close()
    return Run(run)


def infer(
    run: "Run | PathLike",
    star: PathLike,
    out: PathLike,
    *,
    overwrite: bool = False,
    reporter: Reporter = PRINT,
    **options: Any,
) -> "Run":
    """Infer motions of particles that trained nothing, as ``dynamight infer`` does; return the run that they make.

    Parameters
    ----------
    run
        a `Run`, or the folder of one.
    star
        STAR or .cs file of the particles; those that trained the run are recognised.
    out
        folder of the new run.
    overwrite
        whether to replace a run in this folder.
    reporter
        takes lines for the user, and progress.
    options
        fields of `InferOptions`.

    Raises
    ------
    InputError
        if the particles or an option cannot be used, or the folder holds a run already.
    """
    run = run if isinstance(run, Run) else Run(run)
    with python_words():
        (chosen,) = dataclasses_of(options, InferOptions)
        run.reload()
        infer_particles(run.stored, Path(star), Path(out), chosen, overwrite, reporter)
        run.reload()
    return Run(out)


def reconstruct(
    run: "Run | PathLike", *, overwrite: bool = False, reporter: Reporter = PRINT, **options: Any
) -> "Maps":
    """Reconstruct both half-maps with the motion undone, the final map and the FSC, as ``dynamight reconstruct`` does.

    Parameters
    ----------
    run
        a `Run`, or the folder of one.
    overwrite
        whether to replace an earlier reconstruction.
    reporter
        takes lines for the user, and progress.
    options
        fields of `ReconstructOptions`.

    Returns
    -------
    Maps
        as `Run.maps`.

    Raises
    ------
    InputError
        if an option cannot be used, or the run has a reconstruction already.
    """
    run = run if isinstance(run, Run) else Run(run)
    with python_words():
        (chosen,) = dataclasses_of(options, ReconstructOptions, preset=run.stored.config.train.preset)
        if run.has_maps and not overwrite:
            raise InputError(f"{run.path} has a reconstruction already; give --overwrite to replace it")
        set_threads(chosen.threads)
        # Before: others may have written to it. After: its models may be on a GPU.
        run.reload()
        reconstruct_judged(run.stored, chosen, reporter)
        run.reload()
    return run.maps


def analyse(run: "Run | PathLike", *, reporter: Reporter = PRINT, **options: Any) -> Path:
    """Write the report of a run, its tables and motion maps, as ``dynamight analyse`` does.

    Parameters
    ----------
    run
        a `Run`, or the folder of one.
    reporter
        takes lines for the user, and progress.
    options
        fields of `AnalyseOptions`.

    Returns
    -------
    Path
        of the report, an HTML page.

    Raises
    ------
    InputError
        if an option cannot be used.
    """
    run = run if isinstance(run, Run) else Run(run)
    with python_words():
        (chosen,) = dataclasses_of(options, AnalyseOptions)
        set_threads(chosen.threads)
        run.reload()
        return analyse_run(run.stored, chosen, reporter)


def open_run(path: PathLike) -> "Run":
    """Open the folder of a run whose training has finished.

    Raises
    ------
    InputError
        if the folder holds no finished run.
    """
    return Run(path)
