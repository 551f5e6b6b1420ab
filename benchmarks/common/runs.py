"""Simulated data sets and trained runs, kept in the temporary folder for the next benchmark that needs them."""

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dynamight_core.judging.summary import summarise
from dynamight_core.options import InputOptions, SimulateOptions, TrainOptions
from dynamight_core.reporter import QUIET
from dynamight_core.run import Run
from dynamight_core.simulate.dataset import simulate
from dynamight_core.simulate.truth import Truth, load_truth
from dynamight_core.training.stage import train

FOLDER = Path(tempfile.gettempdir()) / "dynamight-benchmarks"
CASES: dict[str, dict] = {
    "hinge": {},
    "peaks": {"angle_distribution": "two-peaks"},
    "rigid": {"motion_range": 0.0},
    "hinge40": {"motion_range": 40.0},
    "hinge60": {"motion_range": 60.0},
    "two": {"molecule": "two-hinges"},
    "two6000": {"molecule": "two-hinges", "particles": 6000},
    "cone": {"cone": 60.0},
    "coloured": {"noise": "coloured"},
    "few": {"particles": 300},
    "many": {"particles": 10000},
    "clear": {"snr": 5.0},
    "noisy": {"snr": 0.05},
    "faint": {"snr": 0.1, "particles": 4000},
    "noise": {"snr": 1e-6},
}
CASES["turn"] = {"molecule": "igg", "particles": 4000, "pixel_size": 4.0, "motion_range": 180.0, "snr": 1.75}
_IGG = {"molecule": "igg", "particles": 4000, "pixel_size": 4.0, "motion_range": 40.0}
for _fine, _sampling in {"": {}, "128": {"box": 128, "pixel_size": 2.0}}.items():
    CASES["igg" + _fine] = _IGG | _sampling
    CASES["igg" + _fine + "-coloured"] = _IGG | _sampling | {"noise": "coloured"}
    CASES["igg" + _fine + "-measured"] = _IGG | _sampling | {"views": "measured"}
    CASES["igg" + _fine + "-both"] = _IGG | _sampling | {"noise": "coloured", "views": "measured"}

_FAB = "H/1-213 L"
# Atoms as sharp as CryoBench's (molmap at 3 A), whose noise for IgG at 64 pixels this ratio is.
_CRYOBENCH = {"particles": 4000, "pixel_size": 4.0, "atom_sigma": 0.68, "snr": 1.75}
_IGG64 = {"molecule": "igg"} | _CRYOBENCH
_SPIKE = str(Path(__file__).parents[1] / "data" / "6vxx.pdb.gz")


def _receptors(chains: str, motion: str) -> list[str]:
    """Return receptor domains of the spike as `--part` has them; rotations lift them."""
    return [f"{c}/331-528; axis {c}/529/CA {c}/331/CA; {motion}" for c in chains]


# Cases like the world, of benchmarks/cases.py.
WORLD = {
    "full-turn": _IGG64 | {"motion_range": 180.0},
    "linker": _IGG64 | {"part": [f"{_FAB}; pivot H/213/CA; cone 70; twist 90"]},
    "three-domains": _CRYOBENCH | {"molecule": _SPIKE, "part": _receptors("ABC", "peaks 0 42")},
    "preferred-views": _IGG64 | {"motion_range": 45.0, "cone": 15.0, "cone_fraction": 0.85},
    "two-small-domains": {
        "molecule": _SPIKE,
        "particles": 6000,
        "pixel_size": 4.0,
        "part": _receptors("AB", "range 25"),
    },
    "missing-part": _IGG64 | {"part": [f"{_FAB}; missing 0.4"]},
    "wrong-poses": _IGG64 | {"motion_range": 0.0, "pose_error": 5.0},
    "junk": _IGG64 | {"motion_range": 40.0, "junk": 0.2, "junk_content": "other"},
}
for _particles in (2000, 20000):
    WORLD[f"two-small-domains-{_particles}"] = WORLD["two-small-domains"] | {"particles": _particles}
CASES |= WORLD


def case_set(case: str, seed: int) -> Path:
    """Return the folder of a case's data set, simulated if it is not there."""
    return data_set(f"{case}-{seed}", seed=seed, **CASES[case])


def data_set(name: str, **options) -> Path:
    """Return the folder of a data set with these options of `simulate`, simulated if it is not there."""
    folder = FOLDER / name
    with _locked(folder):
        if not (folder / "truth.npz").exists():
            simulate(SimulateOptions(**options), folder)
    return folder


def kept_run(folder: Path, options: TrainOptions, name: str = "keep", **inputs) -> Run:
    """Return the run `name` of a data set's folder, trained if it is not there; `inputs` replace its own."""
    with _locked(folder):
        if not (folder / name / "analysis" / "summary.json").exists():
            given = {"star": str(folder / "particles.star"), "map": str(folder / "consensus.mrc")} | inputs
            summarise(
                train(InputOptions(**given), options, folder / name, overwrite=True, reporter=QUIET), reporter=QUIET
            )
    return Run(folder / name)


def trained_run(case: str, seed: int, epochs: int | None = None) -> tuple[Truth, Run]:
    """Return truth and finished run of a case; with `epochs`, a brief run for its start alone."""
    folder, options = case_set(case, seed), TrainOptions(seed=seed, n_gaussians=2000)
    # Images of noise have no consensus: they are given the map of a molecule.
    known = case_set("hinge", seed) if case == "noise" else folder
    if epochs is not None:
        options = replace(options, epochs=epochs, refits=0)
    name = "keep" if epochs is None else "brief"
    return load_truth(folder / "truth.npz"), kept_run(folder, options, name, map=str(known / "consensus.mrc"))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other benchmarks, which may want the same data set, out of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
