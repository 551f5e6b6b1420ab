"""Every stage on a full disk, in a read-only folder, in another user's run, beside another writer, with edited inputs.

    unshare -m python -m benchmarks.refusals OUT

Needs root (for small file systems of its own, which `unshare -m` hides from others, and for another user). Each command
runs on a copy of a small finished run. Prints a table: condition, commands, exit code, what was said, and whether the
run is afterwards as it was. The exit code is 1 if a command failed instead of refusing, or a run is not as before.
"""

import argparse
import codecs
import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import mrcfile
import numpy as np

from benchmarks.common.killing import differing, leftovers
from dynamight_core.analysis import judged, stage, state_maps
from dynamight_core.cli.main import run as run_command
from dynamight_core.lock import writing
from dynamight_core.training import stage as training

# Imported once, for all children.
_HEAVY = (judged, stage, state_maps, training)
# Another user (nobody), and free space on the full disk, bytes.
_OTHER, _SPARE = 65534, 4096
_SMALL = "--n-gaussians 50 --epochs 2 --warm-up-epochs 1 --n-latents 2 --refits 0 --reference-epochs 1 --n-motions 2"
_SMALL += " --batch-size 100 --validation-fraction 0.25 --no-large-motions --device cpu"


def commands(out: Path, run: Path) -> dict[str, str]:
    """Return the words of each command on a run, by name."""
    inputs = f"{out}/in/particles.star {run} --map {out}/in/consensus.mrc {_SMALL}"
    anyway = "--use-unsupported-motion"
    words = {
        "train --resume": f"train {inputs} --resume",
        "train --overwrite": f"train {inputs} --overwrite",
        "infer": f"infer {run} {out}/more/particles.star {run.parent}/new --device cpu",
        "invert": f"invert {run} --epochs 1 --device cpu",
        "reconstruct": f"reconstruct {run} --device cpu --no-shrink --overwrite",
        "analyse": f"analyse {run} --embedding pca",
        "states": f"states {run} {anyway} --no-movie --n-states 2",
        "fields": f"fields {run} {anyway} --motions 1",
        "select": f"select {run} {anyway} --along 1:-1:9",
        "displace": f"displace {run} {anyway} --points {out}/points.npy --out {run.parent}/moved.npz --device cpu",
        "control": f"control {run} --kind held-out --no-shrink --device cpu",
    }
    words = {name: text if name == "select" else f"{text} --threads 1" for name, text in words.items()}
    return words | {"bundle": f"bundle {run} --out {run.parent}/bundle.zip"}


def attempt(words: list[str], user: int | None = None) -> tuple[int, str]:
    """Run a command in a child, perhaps as another user; return its exit code and the last line that it says."""
    with tempfile.TemporaryFile("w+") as said:
        pid = os.fork()
        if not pid:
            code = 1
            try:
                if user is not None:
                    os.setgroups([])
                    os.setgid(user)
                    os.setuid(user)
                sys.argv = ["dynamight", *words]
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
                    code = run_command(words)
            finally:
                said.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said.seek(0)
        lines = said.read().strip().splitlines()
    # Of other lines, notes and warnings are first.
    return code, next((line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")), "")


class Trial:
    """Tries commands on copies of a run.

    Parameters
    ----------
    out
        folder with inputs and run.
    """

    def __init__(self, out: Path):
        self.out, self.place = out, out / "place"
        self.rows: list[tuple[str, str, int, str, str]] = []
        self.bad = False

    @contextlib.contextmanager
    def disk(self, spare: int) -> Iterator[Path]:
        """Yield a copy of the run on a file system of its own, with some bytes to spare."""
        self.place.mkdir(exist_ok=True)
        # Files take whole pages there.
        size = sum(-(-path.stat().st_size // 4096) * 4096 + 4096 for path in (self.out / "run").rglob("*"))
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size + spare}", "tmpfs", str(self.place)], check=True)
        try:
            shutil.copytree(self.out / "run", self.place / "run")
            yield self.place / "run"
        finally:
            subprocess.run(["umount", str(self.place)], check=True)

    def on_a_full_disk(self) -> None:
        """Try all commands where there is room for a few small files."""
        for name in commands(self.out, self.place):
            with self.disk(_SPARE) as run:
                self._try("full disk", name, run)

    def in_a_read_only_folder(self) -> None:
        """Try all commands where nothing can be written, whoever asks."""
        with self.disk(2**26) as run:
            subprocess.run(["mount", "-o", "remount,ro", str(self.place)], check=True)
            for name in commands(self.out, run):
                self._try("read-only folder", name, run)

    def in_a_run_of_another_user(self) -> None:
        """Try all commands on a run that can be read, and on one that cannot."""
        with self.disk(2**26) as run:
            for name in commands(self.out, run):
                self._try("run of another user", name, run, _OTHER)
            (run / "half1").chmod(0o700)
            for name in commands(self.out, run):
                self._try("another user's run that cannot be read", name, run, _OTHER)

    def beside_another_writer(self) -> None:
        """Try all commands while another process writes the run."""
        with self.disk(2**26) as run:
            read, write = os.pipe()
            pid = os.fork()
            if not pid:
                sys.argv = ["dynamight", "reconstruct", str(run)]
                with writing(run):
                    os.write(write, b"x")
                    signal.pause()
            os.read(read, 1)
            try:
                for name in commands(self.out, run):
                    self._try("second writer", name, run, held=True)
            finally:
                os.kill(pid, 9)
                os.waitpid(pid, 0)

    def with_edited_inputs(self) -> None:
        """Try all commands after each of several edits."""
        for what, edit in EDITS.items():
            with self.disk(2**26) as run:
                shutil.copytree(self.out / "in", self.out / "kept")
                try:
                    edit(self.out, run)
                    for name in commands(self.out, run):
                        if name != "train --overwrite":
                            self._try(what, name, run)
                finally:
                    shutil.rmtree(self.out / "in")
                    (self.out / "kept").rename(self.out / "in")

    def _try(self, condition: str, name: str, run: Path, user: int | None = None, held: bool = False) -> None:
        before = self.out / "before"
        shutil.rmtree(before, ignore_errors=True)
        shutil.copytree(run, before)
        code, sentence = attempt(commands(self.out, run)[name].split(), user)
        if code == 0:
            # It did what it should; the next command finds the run as it was.
            state = "done"
            if os.access(run, os.W_OK):
                shutil.rmtree(run)
                shutil.copytree(before, run)
        else:
            changed = differing(before, run) + ([] if held else leftovers(run))
            state = "as before" if not changed else f"changed: {', '.join(changed)}"
            self.bad |= bool(changed)
        self.bad |= code not in (0, 2) or (code == 2 and not sentence)
        self.rows.append((condition, name, code, self._short(sentence), state))
        print(*self.rows[-1], sep=" | ", flush=True)
        for made in ("new", "moved.npz", "bundle.zip"):
            path = run.parent / made
            if path.is_dir() and os.access(run.parent, os.W_OK):
                shutil.rmtree(path)
            elif path.exists():
                path.unlink()

    def _short(self, sentence: str) -> str:
        """Return a sentence with short names of folders."""
        for folder, short in ((self.place / "run", "RUN"), (self.place, "OUT"), (self.out / "in", "IN")):
            sentence = sentence.replace(str(folder), short)
        return sentence

    def table(self) -> Iterator[str]:
        """Yield the rows of a table; commands with the same answer share one."""
        yield "| condition | commands | exit code | what was said | the run |"
        yield "|---|---|---|---|---|"
        together: dict[tuple[str, int, str, str], list[str]] = {}
        for condition, name, code, sentence, state in self.rows:
            together.setdefault((condition, code, sentence, state), []).append(name)
        for (condition, code, sentence, state), names in together.items():
            said = sentence or "nothing: they do not need it"
            yield f"| {condition} | {', '.join(names)} | {code} | {said} | {state} |"


def _edit_star(out: Path, run: Path) -> None:
    path = out / "in" / "particles.star"
    lines = path.read_text().splitlines()
    row = next(number for number, line in enumerate(lines) if "@" in line)
    words = lines[row].split()
    words[1] = f"{float(words[1]) + 3:.6f}"
    lines[row] = "\t".join(words)
    path.write_text("\n".join(lines) + "\n")


def _remove_row(out: Path, run: Path) -> None:
    path = out / "in" / "particles.star"
    lines = path.read_text().splitlines()
    del lines[next(number for number, line in enumerate(lines) if "@" in line)]
    path.write_text("\n".join(lines) + "\n")


def _replace_stack(out: Path, run: Path) -> None:
    with mrcfile.open(out / "in" / "particles.mrcs", "r+") as stack:
        stack.data[:] = np.random.default_rng(0).normal(size=stack.data.shape)


def _cut_stack(out: Path, run: Path) -> None:
    path = out / "in" / "particles.mrcs"
    os.truncate(path, path.stat().st_size // 2)


def _replace_map(out: Path, run: Path) -> None:
    with mrcfile.open(out / "in" / "consensus.mrc", "r+") as volume:
        volume.data[:] = volume.data * 2


def _replace_model(out: Path, run: Path) -> None:
    shutil.copyfile(run / "half2" / "model.safetensors", run / "half1" / "model.safetensors")


EDITS: dict[str, Callable[[Path, Path], None]] = {
    "a pose edited in the STAR file": _edit_star,
    "a row removed from the STAR file": _remove_row,
    "images of the stack replaced": _replace_stack,
    "stack cut off": _cut_stack,
    "map replaced": _replace_map,
    "model of another training": _replace_model,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name, more in (("in", "--particles 200"), ("more", "--particles 60 --seed 5")):
        words = f"simulate {out}/{name} --box 20 --pixel-size 7 --threads 1 {more}"
        if attempt(words.split())[0]:
            sys.exit(f"{words} failed")
    np.save(out / "points.npy", np.full((4, 3), 5.0))
    inputs = f"{out}/in/particles.star {out}/run --map {out}/in/consensus.mrc {_SMALL} --threads 1"
    for words in (f"train {inputs}", f"reconstruct {out}/run --device cpu --no-shrink --threads 1"):
        if attempt(words.split())[0]:
            sys.exit(f"{words} failed")
    # Python imports it when it is used first, from a folder that others may not read.
    codecs.lookup("utf-8-sig")
    trial = Trial(out)
    trial.on_a_full_disk()
    trial.in_a_read_only_folder()
    trial.in_a_run_of_another_user()
    trial.beside_another_writer()
    trial.with_edited_inputs()
    print(*trial.table(), sep="\n")
    sys.exit(trial.bad)


if __name__ == "__main__":
    main()
