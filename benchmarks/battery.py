"""Run every stage and most options of training on tiny data sets, to compare what two versions of the code compute.

PYTHONPATH=CODE python benchmarks/battery.py OUT [--demo DEMO]

Runs the engine in the folder CODE on 400 simulated images of the molecule `hinge` and 240 of the Fab of 1HZH (32 and 28
pixels), in about three minutes on one core. With --demo, runs the stages after training on a copy of a demo folder
instead. Afterwards, `python benchmarks/compare_runs.py OLD NEW` compares two such folders. What each command prints
goes to OUT/battery.log, and its seconds to the terminal.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import gemmi
import numpy as np

FAB, AXIS = "L/1-107 H/1-113", ("L/107/CA", "H/113/CA")
# Maps, latents and models differ already after one epoch where the code does.
QUICK = "--n-gaussians 150 --n-latents 3 --n-motions 3 --epochs 3 --warm-up-epochs 1".split()
TRAININGS = {
    "coordinate": "--decoder coordinate",
    "bodies": "--bodies run/analysis/domains/domain1_mask.mrc run/analysis/domains/domain2_mask.mrc",
    "encoder": "--encoder-epochs 3 --regularisation dynamic",
    "paper": "--decoder coordinate --no-latent-refinement --validation-trains-encoders --no-gaussian-amplitudes "
    "--regularisation dynamic --sparse-motion 0.1",
    "poses": "--refine-poses --width-classes 2",
    "mask": "--mask run/analysis/domains/domain2_mask.mrc --motion-resolution 0 --refits 1",
    "continued": "--start-from trainings/encoder",
    "file": "--storage file --normalise set --working-box 24",
}
STATES = {
    "motion": "--n 5",
    "clusters": "--clusters 3",
    "tour": "--clusters 3 --mixture --tour --full --n 3",
    "ridge": "--ridge --n 3 --difference --no-movie",
    "at": "--at 1,0,0 --at 0,1,0 --half 1",
}


class Engine:
    """The command line of whatever engine PYTHONPATH names, run in the folder OUT."""

    def __init__(self, out: Path):
        self.out = out
        self.log = out / "battery.log"
        self.failures = 0

    def __call__(self, *words: str, threads: bool = True) -> None:
        """Run one command on one thread."""
        command = [sys.executable, "-m", "dynamight_core", *words, *(["--threads", "1"] if threads else [])]
        started = time.monotonic()
        with self.log.open("a") as log:
            log.write(f"\n$ dynamight {' '.join(words)}\n")
            log.flush()
            ended = subprocess.run(command, cwd=self.out, stdout=log, stderr=subprocess.STDOUT)
        self.failures += ended.returncode != 0
        outcome = "FAILED" if ended.returncode else f"{time.monotonic() - started:4.1f} s"
        print(f"{outcome}  dynamight {' '.join(words)}", flush=True)

    def train(self, data: str, run: str, *words: str) -> None:
        """Train on a simulated data set of the folder."""
        self("train", f"{data}/particles.star", run, "--map", f"{data}/consensus.mrc", *QUICK, *words)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="Folder to write, which must not exist.")
    parser.add_argument("--demo", type=Path, help="Folder of a demo, copied to OUT.")
    arguments = parser.parse_args()
    if arguments.out.exists():
        sys.exit(f"{arguments.out} exists; name a new folder")
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    # The folder that commands run in has no code, so relative folders of code would be lost.
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(folder).resolve()) for folder in folders if folder)
    engine = Engine(arguments.out)
    if arguments.demo:
        shutil.copytree(arguments.demo, arguments.out)
        stages(engine, "200")
    else:
        arguments.out.mkdir(parents=True)
        hinge(engine)
        stages(engine, "150")
        trainings(engine)
        atomic(engine)
    if engine.failures:
        sys.exit(f"{engine.failures} commands failed; {engine.log} says why")


def hinge(engine: Engine) -> None:
    """Simulate two data sets of molecules with hinges and train on the first."""
    words = "--particles 400 --box 32 --pixel-size 6 --snr 8 --seed 1"
    engine("simulate", "data", *words.split())
    words = (
        "--molecule two-hinges --particles 200 --box 32 --snr 8 --pixel-size 6 --noise coloured --views measured "
        "--defoci measured --optics-groups 3 --phase-shift 90 --aberrations --float16 --angle-distribution two-peaks"
    )
    engine("simulate", "two-hinges", *words.split())
    engine.train("two-hinges", "trainings/two-hinges")
    engine("reconstruct", "trainings/two-hinges")
    halves = ("--half-maps", "data/consensus_half1.mrc", "data/consensus_half2.mrc")
    words = "--n-gaussians 300 --epochs 8 --warm-up-epochs 2 --validation-fraction 0.2"
    engine.train("data", "run", *halves, *words.split())


def stages(engine: Engine, particles: str) -> None:
    """Run every stage after training on `run`; controls use at most this number of particles of each half."""
    engine("reconstruct", "run", "--local-resolution", "--overwrite")
    engine("analyse", "run", "--embedding", "pca", "--domains", "2")
    for name in ("least-squares", "regions", "inverse"):
        shutil.copytree(engine.out / "run", engine.out / name)
    engine("reconstruct", "least-squares", *"--method cg --conformation particle:5 --steps 3 --overwrite".split())
    words = "--no-shrink --error-weights --overwrite --regions run/analysis/domains/domain2_mask.mrc"
    engine("reconstruct", "regions", *words.split())
    engine("invert", "inverse", "--epochs", "10")
    engine("reconstruct", "inverse", "--through-inverse", "--overwrite")
    for name, words in STATES.items():
        engine("states", "run", "--out", f"states/{name}", *words.split())
    np.save(engine.out / "points.npy", np.random.default_rng(0).normal(0, 30, (50, 3)).astype(np.float32))
    engine("displace", "run", *"--points points.npy --out displaced.npz".split())
    words = "--points points.npy --out displaced_states.npz --states states/motion/states.csv"
    engine("displace", "run", *words.split())
    engine("select", "run", *"--motion 1: --error :3 --along 1:-2: --name some".split(), threads=False)
    engine("select", "run", *"--clusters 3 --cluster 1 --complement --name others".split(), threads=False)
    for kind in ("shuffled-latents", "noise-particles", "held-out"):
        words = ("--particles", particles, "--permutations", "2", "--no-shrink")
        engine("control", "run", "--kind", kind, *words)


def trainings(engine: Engine) -> None:
    """Train with other options, and reconstruct."""
    for name, words in TRAININGS.items():
        engine.train("data", f"trainings/{name}", *words.split())
        engine("reconstruct", f"trainings/{name}", "--no-shrink")
    engine("analyse", "trainings/bodies", "--embedding", "pca")


def atomic(engine: Engine) -> None:
    """Simulate the Fab of an antibody, train with its atomic model and make the control of a wrong model."""
    import dynamight_core

    structure = gemmi.read_structure(str(Path(dynamight_core.__file__).parent / "simulate" / "data" / "1hzh.pdb.gz"))
    structure.remove_waters()
    fab = gemmi.Selection("//L,H/1-213").copy_structure_selection(structure)
    centre = fab[0].calculate_center_of_mass()
    fab[0].transform_pos_and_adp(gemmi.Transform(gemmi.Mat33(), -centre))
    fab.make_mmcif_document().write_file(str(engine.out / "fab.cif"))
    words = "--particles 240 --box 28 --pixel-size 4 --snr 8 --motion-range 25 --molecule fab.cif".split()
    engine("simulate", "fab", *words, "--selection", FAB, "--axis", *AXIS)
    engine.train("fab", "atomic", "--atomic-model", "fab.cif", "--fit", "--origin", "centre", "--seed", "2")
    engine("reconstruct", "atomic")
    engine("control", "atomic", "--kind", "wrong-model", "--particles", "100", "--selection", FAB)
    engine("displace", "atomic", *"--points fab.cif --out atoms.npz --particles 1,7 --models --state 1,0".split())


if __name__ == "__main__":
    main()
