"""Runs of the antibody 1HZH and of its Fab with the right atomic model, a wrong one or none."""

from pathlib import Path

from benchmarks.common.runs import FOLDER, data_set, kept_run
from dynamight_core.model.wrong import wrong_model
from dynamight_core.options import ReconstructOptions, TrainOptions
from dynamight_core.reconstruction.stage import reconstruct_run
from dynamight_core.reporter import QUIET
from dynamight_core.run import Run
from tools.structures import write_antibody

# What is simulated, the part of the file that it is of, what moves, and what takes its place in the wrong model.
CASES = {
    "igg": ({"particles": 4000, "motion_range": 40.0}, "H K L M A B", "H/1-213 L", "H/244-478 K/244-478"),
    "fab": (
        {
            "particles": 600,
            "motion_range": 25.0,
            "box": 32,
            "snr": 2.0,
            "selection": "L/1-107 H/1-113",
            "axis": ("L/107/CA", "H/113/CA"),
        },
        "H/1-213 L",
        "L/1-107 H/1-113",
        "L/108-214 H/114-213",
    ),
}
FREE = {"stiffness": 0.0, "rigidity": 0.0}
# Options of training by prior, and which model it starts from.
PRIORS = {
    "none": (FREE, None),
    "smoothness": ({}, None),
    "right": ({}, "right"),
    "wrong": ({}, "wrong"),
    "right, bonds alone": ({"rigidity": 0.0}, "right"),
    "wrong, bonds alone": ({"rigidity": 0.0}, "wrong"),
}


def prior_set(case: str, particles: int | None, seed: int) -> tuple[Path, dict[str, Path]]:
    """Return the folder of a simulated data set, and the right and the wrong model in the frame of its map by name."""
    options, part, moving, replacement = CASES[case]
    options = options | ({} if particles is None else {"particles": particles})
    name = f"prior-{case}-{options['particles']}-{seed}"
    paths = {model: FOLDER / name / f"{model}.cif" for model in ("right", "wrong")}
    if not paths["wrong"].exists():
        (FOLDER / name).mkdir(parents=True, exist_ok=True)
        write_antibody(part, paths["right"])
        wrong_model(paths["right"], moving, paths["wrong"], replacement)
    molecule = "igg" if case == "igg" else str(paths["right"])
    return data_set(name, molecule=molecule, pixel_size=4.0, seed=seed, **options), paths


def prior_run(case: str, prior: str, particles: int | None, seed: int, n_gaussians: int) -> Run:
    """Return a run with one of `PRIORS`, trained and reconstructed if it is not there."""
    folder, paths = prior_set(case, particles, seed)
    more, model = PRIORS[prior]
    options = TrainOptions(seed=seed, n_gaussians=n_gaussians, **more)
    atomic_model = None if model is None else str(paths[model])
    run = kept_run(folder, options, f"run-{prior.replace(', ', '-').replace(' ', '-')}", atomic_model=atomic_model)
    if not (run.path / "reconstruction" / "fsc.star").exists():
        reconstruct_run(run, ReconstructOptions(rigid=prior == "smoothness"), QUIET)
    return run
