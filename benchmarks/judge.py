"""Whether the judge names what is wrong: verdict and causes of many short runs against the truth.

    python -m benchmarks.judge RESULTS --seeds 0 1 2 3 4 [--cases motion still ...] [--molecules hinge igg two spike]

Data: 500 images of 32 pixels, of four molecules, with one known fault each (FAULTS). Thresholds of the judge were
chosen on seeds 10 and 11.

RESULTS has a folder for each data set with its training, and runs.csv with what the judge said: the command can be
stopped and repeated, and adds what is missing. With --again, finished trainings are judged again. Prints for each case
how many verdicts and causes were right, in how many runs without motion it was called supported, and what was wrong.

The conclusion's verdict counts. It is right if it is "supported" where the molecule moves, and anything else
where it does not; where motion is faint, any verdict is. The cause is right if one of the expected ones is found or
suspected, and no other one is found. "Too little data"
is no claim.
"""

import argparse
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import torch

from benchmarks.common.faults import Fault, write_faulty
from dynamight_core.judging.causes import COMPOSITION, CTF, DUPLICATES, JUNK, POSES, TOO_LITTLE
from dynamight_core.judging.summary import summarise
from dynamight_core.options import InputOptions, SimulateOptions, TrainOptions
from dynamight_core.reporter import QUIET
from dynamight_core.run import Run
from dynamight_core.training.build import load_images
from dynamight_core.training.read import read_inputs
from dynamight_core.training.stage import train

_SPIKE = str(Path(__file__).parent / "data" / "6vxx.pdb.gz")
SNR = 8.0
MOLECULES = {
    "hinge": {"molecule": "hinge", "pixel_size": 6.0},
    "two": {"molecule": "two-hinges", "pixel_size": 6.0},
    "igg": {"molecule": "igg", "pixel_size": 8.0},
    # One domain of 6 % of the mass: with the noise of the others, nothing shows that it moves or is missing.
    "spike": {
        "molecule": _SPIKE,
        "selection": "A/331-528",
        "axis": ("A/529/CA", "A/331/CA"),
        "pixel_size": 8.0,
        "snr": 10 * SNR,
    },
}
RANGE = {"hinge": 25.0, "two": 30.0, "igg": 40.0, "spike": 40.0}
# With pixels so large, phases are inverted within the image only far from focus.
_DEFOCUSED = {"defocus_min": 15000.0, "defocus_max": 30000.0}
FAULTS = {
    "motion": Fault({}, True),
    "faint": Fault({"snr": SNR / 8}, True, causes=(TOO_LITTLE, "")),
    "still": Fault({}),
    "still-faint": Fault({"snr": SNR / 8}),
    "missing-10": Fault({}, missing=0.1, causes=(COMPOSITION,)),
    "missing-25": Fault({}, missing=0.25, causes=(COMPOSITION,)),
    "missing-40": Fault({}, missing=0.4, causes=(COMPOSITION,)),
    "missing-motion": Fault({}, True, missing=0.3, causes=(COMPOSITION,)),
    "poses-2": Fault({"pose_error": 2.0}, causes=(POSES, "")),
    "poses-5": Fault({"pose_error": 5.0}, causes=(POSES,)),
    "junk": Fault({"junk": 0.2}, causes=(JUNK,)),
    "junk-motion": Fault({"junk": 0.2}, True, causes=(JUNK,)),
    "duplicates": Fault({}, duplicates=True, causes=(DUPLICATES,)),
    "duplicates-motion": Fault({}, True, duplicates=True, causes=(DUPLICATES,)),
    "views": Fault({"cone": 20.0, "cone_fraction": 0.85}),
    "views-motion": Fault({"cone": 20.0, "cone_fraction": 0.85}, True),
    "coloured": Fault({"noise": "coloured"}),
    "coloured-motion": Fault({"noise": "coloured"}, True),
    "size": Fault(_DEFOCUSED, wrong_size=True, causes=(CTF, "")),
    "size-motion": Fault(_DEFOCUSED, True, wrong_size=True, causes=(CTF, "")),
    "flipped": Fault(_DEFOCUSED, flipped=True, causes=(CTF,)),
    "flipped-motion": Fault(_DEFOCUSED, True, flipped=True, causes=(CTF,)),
}
TRAINING = {"n_gaussians": 200, "n_latents": 3, "n_motions": 3, "epochs": 8, "refits": 1, "validation_fraction": 0.25}


def trained_folder(case: str, molecule: str, seed: int, folder: Path) -> Path:
    """Return the folder of a case's data set and finished training; made if it is not there."""
    if (folder / "run" / "latents.safetensors").exists():
        return folder
    fault, name = FAULTS[case], MOLECULES[molecule]
    options = {"particles": 500, "box": 32, "snr": SNR, "motion_range": RANGE[molecule] if fault.moves else 0.0}
    shutil.rmtree(folder, ignore_errors=True)
    write_faulty(SimulateOptions(**(options | name | fault.options | {"seed": seed})), fault, folder)
    inputs = InputOptions(
        star=str(folder / "particles.star"),
        map=str(folder / "consensus.mrc"),
        half_maps=[str(folder / f"consensus_half{half}.mrc") for half in (1, 2)],
    )
    options = TrainOptions(seed=seed, threads=1, device="cpu", **TRAINING)
    train(inputs, options, folder / "run", overwrite=True, reporter=QUIET).data.close()
    return folder


def judged(folder: Path) -> dict:
    """Return what the judge says about a finished training."""
    started = time.process_time()
    run = Run(folder / "run")
    prepared = read_inputs(run.config.inputs, run.config.train)
    data = load_images(prepared, torch.device("cpu"), run.path, QUIET)
    rows = [torch.where((run.halves == half) & ~run.validation)[0] for half in (1, 2)]
    finished = SimpleNamespace(
        run=run.path, options=prepared.options, models=run.models, prepared=prepared, data=data, training_rows=rows
    )
    summary = summarise(finished, QUIET).summary
    data.close()
    kept = {name: summary[name] for name in ("conclusion", "causes", "evidence", "unseen_motion_rms")}
    seconds = time.process_time() - started
    return kept | {"motion": summary["motion_between_particles_rms"], "seconds": round(seconds, 1)}


def is_right(case: str, said: dict) -> tuple[bool, bool]:
    """Return whether verdict and cause of a run are right."""
    fault = FAULTS[case]
    verdict = case == "faint" or (said["conclusion"]["motion"] == "supported") == fault.moves
    found = {cause["name"]: cause["found"] for cause in said["causes"] if cause["found"]}
    claimed = {name for name, value in found.items() if value is True} - {TOO_LITTLE}
    expected = not fault.causes or "" in fault.causes or any(name in found for name in fault.causes)
    return verdict, expected and claimed <= set(fault.causes)


def as_row(case: str, molecule: str, seed: int, said: dict) -> dict:
    """Return a row of runs.csv."""
    verdict, cause = is_right(case, said)
    found = [f"{c['name']}{'' if c['found'] is True else '?'}" for c in said["causes"] if c["found"]]
    row = {"case": case, "molecule": molecule, "seed": seed, "verdict": said["conclusion"]["motion"]}
    row |= {"causes": "; ".join(found), "verdict_right": verdict, "cause_right": cause, "motion_A": said["motion"]}
    for name, (gain, error) in said["evidence"].items():
        row |= {name: round(gain, 3), f"{name} error": round(error, 3)}
    values = {c["name"]: c["value"] for c in said["causes"]}
    return row | {"pose_degrees": values[POSES], "defocus": values[CTF], "seconds": said["seconds"]}


def report(table: pd.DataFrame) -> None:
    """Print how often the judge was right, and where it was not."""
    columns = ["verdict_right", "cause_right"]
    table = table.assign(both=table[columns].all(axis=1))
    counts = table.groupby("case", sort=False)[[*columns, "both"]].sum().astype(int)
    counts.insert(0, "runs", table.groupby("case", sort=False).size())
    print(counts.to_string())
    still = table[[not FAULTS[case].moves for case in table["case"]]]
    false = int((still["verdict"] == "supported").sum())
    print(f"{len(table)} runs: verdict and cause right in {100 * table['both'].mean():.1f} %")
    print(f"motion called supported in {false} of {len(still)} runs in which nothing moves")
    wrong = table[~table["both"]]
    if len(wrong):
        print(wrong[["case", "molecule", "seed", "verdict", "causes"]].to_string(index=False))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--cases", nargs="+", choices=FAULTS, default=list(FAULTS), metavar="CASE")
    parser.add_argument("--molecules", nargs="+", choices=MOLECULES, default=list(MOLECULES))
    parser.add_argument("--conclusions", action="store_true", help="Print the conclusions of the runs as well.")
    parser.add_argument("--again", action="store_true", help="Judge finished trainings again.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.results.mkdir(parents=True, exist_ok=True)
    path, rows = arguments.results / "runs.csv", {}
    if path.exists() and not arguments.again:
        table = pd.read_csv(path, keep_default_na=False)
        rows = {(row["case"], row["molecule"], row["seed"]): row for row in table.to_dict("records")}
    for seed in arguments.seeds:
        for molecule in arguments.molecules:
            for case in arguments.cases:
                if (case, molecule, seed) in rows:
                    continue
                folder = trained_folder(case, molecule, seed, arguments.results / f"{case}-{molecule}-{seed}")
                rows[case, molecule, seed] = as_row(case, molecule, seed, judged(folder))
                pd.DataFrame(rows.values()).to_csv(path, index=False)
    asked = [
        row
        for row in rows.values()
        if row["seed"] in arguments.seeds and row["case"] in arguments.cases and row["molecule"] in arguments.molecules
    ]
    if arguments.conclusions:
        for row in asked:
            run = Run(arguments.results / f"{row['case']}-{row['molecule']}-{row['seed']}" / "run")
            print(f"\n{row['case']} {row['molecule']} {row['seed']}", *run.summary["conclusion"]["lines"], sep="\n  ")
    report(pd.DataFrame(asked))


if __name__ == "__main__":
    main()
