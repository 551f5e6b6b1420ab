"""Commands killed at random times and at calls of the file system: what they leave, and what comes after.

    python -m benchmarks.kills OUT [--kills 200] [--seed 0] [--only NAME ...]

On a tiny data set, each command runs undisturbed, where there is no earlier result of it and where there is one of
other options. Then it is killed (SIGKILL): by turns at a random time and before a random one of its calls that open a
file to write, rename, remove, link, sync or make a file or folder. By turns another command (select) or the same one
follows. Prints a line for each command: kills; files that cannot be read; sets that are neither all old nor all new;
leftovers after the next command; and results that differ from those of an undisturbed run, bit by bit.
"""

import argparse
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np

import dynamight_core.training.stage
from benchmarks.common.killing import Calls, broken, differing, in_child, leftovers, state_of
from dynamight_core.analysis.explorer.session import Explorer
from dynamight_core.reporter import QUIET
from dynamight_core.run import STAGE_FILES, Run

_SMALL = "--n-gaussians 50 --epochs 3 --warm-up-epochs 1 --n-latents 2 --refits 0 --reference-epochs 1 --n-motions 2"
_SMALL += " --batch-size 100 --validation-fraction 0.25"
_CPU = "--threads 1 --device cpu"
_ANYWAY = "--use-unsupported-motion --threads 1"
# Stages whose files are in the run's folder, and what a data set consists of.
_DATA = ("particles.star", "particles.mrcs", "consensus*.mrc", "truth.npz")

# Of commands that remove earlier results before they write, the file that programs open.
_LAST = {"simulate": "d/particles.star", "train": "run/particles.star", "infer": "new/particles.star"}


@dataclass(frozen=True)
class Step:
    """A command that is killed.

    Parameters
    ----------
    base
        name of the folder in which it starts.
    old, new
        words of the command whose results are there before, and of the one that is killed; or functions.
    files
        patterns of the files that belong together.
    weight
        how often it is killed, compared with others.
    resumed
        whether it goes on where it was killed.
    """

    base: str
    old: list[str] | Callable[[], int]
    new: list[str] | Callable[[], int]
    files: tuple[str, ...]
    weight: int
    resumed: bool = False


def make_steps(out: Path) -> dict[str, Step]:
    """Return all commands by name; they work in OUT/work."""
    work = out / "work"
    run, star = work / "run", out / "d" / "particles.star"

    def step(base: str, files: tuple[str, ...], weight: int, words: str, old: str, new: str, resumed=False) -> Step:
        return Step(base, f"{words} {old}".split(), f"{words} {new}".split(), files, weight, resumed)

    def stage(weight: int, words: str, old: str, new: str) -> Step:
        files = tuple(f"run/{pattern}" for pattern in STAGE_FILES[words.split()[0]])
        return step("trained", files, weight, words, old, new)

    train = f"train {star} {run} --map {out}/d/consensus.mrc {_SMALL} {_CPU} --overwrite"
    simulate = f"simulate {work}/d --particles 120 --box 16 --pixel-size 10 --threads 1 --overwrite"
    one_file = {
        "check": (
            "empty",
            f"check {out}/bad/particles.star --threads 1 --cleaned {work}/kept.star",
            "",
            "",
            "kept.star",
        ),
        "displace": (
            "trained",
            f"displace {run} {_ANYWAY} --device cpu --out {work}/moved.npz",
            *_points(out),
            "moved.npz",
        ),
        "deform": (
            "fields",
            f"deform {run}/analysis/fields/motion1.npz {out}/d/consensus.mrc --out {work}/bent.mrc --threads 1",
            "--scale 2",
            "",
            "bent.mrc",
        ),
        "bundle": ("trained", f"bundle {run} --out {work}/bundle.zip", "", "", "bundle.zip"),
    }
    steps = {
        "simulate": step("empty", tuple(f"d/{name}" for name in _DATA), 14, simulate, "--seed 3", "--seed 4"),
        "train": step(
            "empty", tuple(f"run/{name}" for name in STAGE_FILES["train"]), 40, train, "--seed 3", "--seed 4", True
        ),
        "infer": step(
            "trained",
            tuple(f"new/{name}" for name in STAGE_FILES["train"]),
            16,
            f"infer {run} {out}/more/particles.star {work}/new {_CPU} --overwrite",
            "--invert-contrast",
            "",
        ),
        "invert": stage(12, f"invert {run} --epochs 1 {_CPU}", "--seed 3", "--seed 4"),
        "reconstruct": stage(28, f"reconstruct {run} {_CPU} --no-shrink --overwrite", "--method wbp", "--method cg"),
        "analyse": stage(20, f"analyse {run} --embedding pca --threads 1", "--domains 2", "--domains 3"),
        "states": stage(14, f"states {run} {_ANYWAY} --no-movie", "--n-states 3", "--n-states 2"),
        "fields": stage(12, f"fields {run} {_ANYWAY}", "--motions 2", "--motions 1"),
        "select": stage(8, f"select {run} --use-unsupported-motion", "--along 1:-9:9", "--along 1:-1:9"),
        "control": stage(14, f"control {run} --kind held-out --no-shrink {_CPU}", "--seed 3", "--seed 4"),
    }
    for name, (base, words, old, new, file) in one_file.items():
        steps[name] = step(base, (file,), 6, words, old, new)

    def save(name: str, lowest: int) -> Callable[[], int]:
        def action() -> int:
            options = {"along": [f"1:{lowest}:9"], "use_unsupported_motion": True}
            explorer = Explorer(Run(run), None, "auto", [], QUIET)
            if not explorer.saver.exists("selections", f"{name}.star"):
                explorer.actions["save_selection"](options, name)
            return 0

        return action

    steps["explore"] = Step("trained", save("a", -9), save("b", -1), ("run/analysis/selections/b.star",), 8)
    return steps


def _points(out: Path) -> tuple[str, str]:
    """Write two files of points; return the options that name them."""
    paths = [out / f"points{number}.npy" for number in (1, 2)]
    for number, path in enumerate(paths, 1):
        np.save(path, np.full((4, 3), 5.0 * number))
    return f"--points {paths[0]}", f"--points {paths[1]}"


class Kills:
    """Kills commands in a folder, and counts what is wrong afterwards.

    Parameters
    ----------
    out
        folder.
    seed
        of what is random.
    """

    def __init__(self, out: Path, seed: int):
        self.out, self.work, self.draw = out, out / "work", random.Random(seed)
        self.calls = Calls(self.work)
        self.found: dict[str, Counter] = {}
        self.seconds: dict[tuple[str, bool], float] = {}
        self.numbers: dict[tuple[str, bool], int] = {}
        self.codes: dict[tuple[str, bool], int | None] = {}

    def make_data(self) -> None:
        """Write the inputs and the folders in which commands start."""
        for name, more in (("d", "--particles 200"), ("more", "--particles 60 --seed 5"), ("bad", "--particles 60")):
            self._must(f"simulate {self.out}/{name} --box 20 --pixel-size 7 --threads 1 {more}".split())
        with mrcfile.open(self.out / "bad" / "particles.mrcs", "r+") as stack:
            stack.data[3] = np.nan
        self.work.mkdir()
        self._keep("empty")
        steps = make_steps(self.out)
        self._must(steps["train"].old)
        self._keep("trained")
        self._must(steps["fields"].old)
        self._keep("fields")

    def undisturbed(self, name: str, step: Step) -> None:
        """Run a command without and with an earlier result, the first time twice, and keep what it leaves."""
        for replaced in (False, True):
            self._take(step.base)
            if replaced:
                in_child(step.old, self.calls)
            self._keep(f"{name}-before{replaced:d}")
            started = time.monotonic()
            self.codes[name, replaced] = in_child(step.new, self.calls)
            self.seconds[name, replaced] = time.monotonic() - started
            self.numbers[name, replaced] = self.calls.number
            self._keep(f"{name}-after{replaced:d}")
        self._take(f"{name}-before0")
        in_child(step.new, self.calls)
        changed = differing(self.work, self.out / f"{name}-after0")
        if changed:
            sys.exit(f"{name}: two undisturbed runs differ in {changed}")

    def kill(self, name: str, step: Step, number: int) -> None:
        """Kill a command once, and look at what it has left, and at what comes after."""
        replaced, at_call, other = bool(number & 1), bool(number & 2), bool(number & 4)
        self._take(f"{name}-before{replaced:d}")
        if at_call:
            where = {"call": self.draw.randint(1, self.numbers[name, replaced])}
        else:
            where = {"after": self.draw.uniform(0, self.seconds[name, replaced])}
        code = in_child(step.new, self.calls, **where)
        counts = self.found.setdefault(name, Counter())
        counts["kills" if code is None else "ended before"] += 1
        wrong = {"broken": broken(self.work)}
        if other and step.base != "empty":
            words = f"select {self.work}/run --along 1:-5:5 --use-unsupported-motion --out {self.work}/next.star"
            self._must(words.split())
            (self.work / "next.star").unlink()
            wrong["leftovers"] = leftovers(self.work / "run")
            wrong["mixed"] = self._mixed(name, step, replaced)
        if name in _LAST and not (self.work / _LAST[name]).exists():
            # What is there passes for no result.
            wrong["mixed"] = []
        elif name in _LAST:
            wrong["mixed"] = self._mixed(name, step, replaced)
        wrong["not run again"] = self._repeat(name, step, replaced, counts)
        wrong["leftovers"] = wrong.get("leftovers", []) + leftovers(self.work)
        wrong["differ"] = differing(self.work, self.out / f"{name}-after{replaced:d}")
        for what, names in wrong.items():
            counts[what] += bool(names)
        if any(wrong.values()):
            print(f"  {name}, {where}, earlier result {replaced}, other command {other}: {wrong}", flush=True)

    def _repeat(self, name: str, step: Step, replaced: bool, counts: Counter) -> list[str]:
        """Run a command again, or resume it; return what is wrong."""
        if step.resumed:
            resumed = [word for word in step.new if word != "--overwrite"] + ["--resume"]
            if in_child(resumed, self.calls) == 0:
                counts["resumed"] += 1
                return []
        code = in_child(step.new, self.calls)
        return [] if code == self.codes[name, replaced] else [f"exit code {code}"]

    def _mixed(self, name: str, step: Step, replaced: bool) -> list[str]:
        """Return the files of a set that is neither the earlier nor the new one."""
        now = state_of(self.work, step.files)
        whole = [state_of(self.out / f"{name}-{when}{replaced:d}", step.files) for when in ("before", "after")]
        if now in whole:
            return []
        if name in _LAST:
            # The records of its files may still be missing.
            return [file for file in now if now[file] != whole[1].get(file)]
        return [file for file in now if now[file] != whole[0].get(file)] or sorted(whole[0].keys() - now.keys())

    def _must(self, action) -> None:
        code = in_child(action, self.calls, tell=True)
        if code:
            sys.exit(f"{action} ends with {code}")

    def _take(self, name: str) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.out / name, self.work)

    def _keep(self, name: str) -> None:
        shutil.rmtree(self.out / name, ignore_errors=True)
        shutil.copytree(self.work, self.out / name)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[])
    arguments = parser.parse_args()
    # Checkpoints after each epoch, however fast it is.
    dynamight_core.training.stage._CHECKPOINT_SECONDS = 0.0
    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)
    kills, started = Kills(arguments.out.resolve(), arguments.seed), time.monotonic()
    kills.make_data()
    steps = {name: step for name, step in make_steps(kills.out).items() if name in (arguments.only or [name])}
    total = sum(step.weight for step in steps.values())
    for name, step in steps.items():
        kills.undisturbed(name, step)
        for number in range(-(-arguments.kills * step.weight // total)):
            kills.kill(name, step, number)
        print(f"{name}: {dict(kills.found[name])}; {time.monotonic() - started:.0f} s", flush=True)
    wrong = {"broken", "mixed", "leftovers", "differ", "not run again"}
    all_counts = sum(kills.found.values(), Counter())
    print(f"all: {dict(all_counts)}")
    sys.exit(any(all_counts[key] for key in wrong))


if __name__ == "__main__":
    main()
