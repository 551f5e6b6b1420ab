"""Compare two runs file by file: did a change of the code change what it computes?

python benchmarks/compare_runs.py OLD NEW [--tolerance 1e-6] [--numbers-only]

OLD and NEW are two runs, two demo folders or two folders of benchmarks/battery.py. Tensors, maps and stacks (values,
voxel size and origin), STAR and CSV columns, JSON and YAML values are compared by name; other files as lines of text or
as bytes. Each line printed is one difference. The exit status is 1 if there is any.

Ignored, since two runs of the same code differ there:

- reports (.html), movies (.mp4), logs (.log), hidden files and files.csv, the report's list of file sizes;
- times, speeds and memory: seconds, particles_per_second, peak_memory_gb, and the report's words for them;
- versions, commands, dates and folders: `provenance` of config.yaml, `dynamight_core` of summary.json;
- `threads`; comments and labels in headers; the folder part of absolute paths.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import starfile
import yaml
from safetensors.numpy import load_file

IGNORED_FILES = {".html", ".mp4", ".log"}
IGNORED_NAMES = {
    "seconds",
    "particles_per_second",
    "peak_memory_gb",
    "minutes of training",
    "particles a second",
    "peak memory, GB",
    "provenance",
    "dynamight_core",
    "threads",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, help="Run or folder of runs.")
    parser.add_argument("new", type=Path, help="The same, made by other code.")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="Accept differences up to this fraction of a tensor's, map's or column's largest absolute value.",
    )
    parser.add_argument("--numbers-only", action="store_true", help="Do not compare words.")
    arguments = parser.parse_args()
    files = [_files(folder) for folder in (arguments.old, arguments.new)]
    if not all(files):
        sys.exit(f"{arguments.old if not files[0] else arguments.new} holds no files; name a run")
    count = 0
    for line in differences(*files, arguments.tolerance, arguments.numbers_only):
        print(line)
        count += 1
    shared = len(files[0].keys() & files[1].keys())
    print(f"{shared} files compared: {count or 'no'} difference{'s' * (count != 1)}")
    sys.exit(count > 0)


def differences(old: dict[str, Path], new: dict[str, Path], tolerance: float, numbers_only: bool) -> Iterator[str]:
    """Yield a line for each difference between two sets of files by name."""
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            yield f"{name}: only in {'OLD' if name in old else 'NEW'}"
            continue
        before, after = read(old[name]), read(new[name])
        for part in sorted(before.keys() | after.keys()):
            if part not in before or part not in after:
                yield f"{name}: {part} only in {'OLD' if part in before else 'NEW'}"
            elif what := _difference(before[part], after[part], tolerance, numbers_only):
                yield f"{name}: {part}: {what}"


def read(path: Path) -> dict[str, np.ndarray]:
    """Return what a file holds as arrays by name, without what is ignored."""
    reader = _READERS.get(path.suffix, _lines_or_bytes)
    return {
        name: np.asarray(values) for name, values in reader(path).items() if not IGNORED_NAMES & set(name.split("/"))
    }


def _files(folder: Path) -> dict[str, Path]:
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: path
        for name, path in found.items()
        if path.suffix not in IGNORED_FILES
        and path.name != "files.csv"
        and not any(part.startswith(".") for part in Path(name).parts)
    }


def _difference(old: np.ndarray, new: np.ndarray, tolerance: float, numbers_only: bool) -> str | None:
    if old.shape != new.shape:
        return f"shape {old.shape} became {new.shape}"
    if old.dtype.kind in "OUS" or new.dtype.kind in "OUS":
        differ = [(a, b) for a, b in zip(old.flat, new.flat, strict=True) if _word(a) != _word(b)]
        if numbers_only or not differ:
            return None
        return f"{len(differ)} of {old.size} differ, first {differ[0][0]!r} became {differ[0][1]!r}"
    if old.dtype != new.dtype:
        return f"{old.dtype} became {new.dtype}"
    kind = complex if old.dtype.kind == "c" else float
    old, new = old.astype(kind), new.astype(kind)
    same = (old == new) | (np.isnan(old) & np.isnan(new))
    if same.all():
        return None
    with np.errstate(invalid="ignore"):
        size = np.where(same, 0, np.abs(new - old))
    scale = np.nanmax(np.abs(old), initial=0.0)
    # A value that became NaN is beyond every tolerance.
    if (size <= tolerance * scale).all():
        return None
    return f"{(~same).sum()} of {same.size} differ, at most by {np.max(size):.3g} (largest value {scale:.3g})"


def _word(value) -> str:
    """Return a value as text, absolute paths without their folders."""
    return re.sub(r"(?<![\w.])/[^\s'\";,]*/", "", str(value))


def _mrc(path: Path) -> dict:
    with mrcfile.open(path, permissive=True) as mrc:
        voxel = [float(mrc.voxel_size[axis]) for axis in "xyz"]
        return {"values": mrc.data.copy(), "voxel size": voxel, "origin": mrc.header.origin.tolist()}


def _star(path: Path) -> dict:
    blocks = starfile.read(path, always_dict=True)
    return {
        f"{block}/{column}": np.atleast_1d(values)
        for block, table in blocks.items()
        for column, values in (table.items() if isinstance(table, dict) else _columns(table).items())
    }


def _csv(path: Path) -> dict:
    table = pd.read_csv(path, float_precision="round_trip")
    # Tables of names and values, one a row.
    return _columns(table[~table.iloc[:, 0].isin(IGNORED_NAMES)])


def _columns(table: pd.DataFrame) -> dict:
    # Whole numbers as others: whether a column is read as integers depends on its values.
    return {
        str(name): column.to_numpy(float if pd.api.types.is_numeric_dtype(column) else object)
        for name, column in table.items()
    }


def _tree(values, name: str = "") -> dict:
    """Return the leaves of nested dictionaries and lists by their paths; lists of numbers are leaves."""
    if isinstance(values, list) and all(isinstance(value, int | float) for value in values):
        return {name: values}
    if isinstance(values, dict | list):
        parts = values.items() if isinstance(values, dict) else enumerate(values)
        return {leaf: v for key, part in parts for leaf, v in _tree(part, f"{name}/{key}").items()}
    return {name: values}


def _lines_or_bytes(path: Path) -> dict:
    content = path.read_bytes()
    try:
        return {"lines": content.decode().splitlines()}
    except UnicodeDecodeError:
        return {"bytes": np.frombuffer(content, dtype=np.uint8)}


_READERS = {
    ".safetensors": load_file,
    ".mrc": _mrc,
    ".mrcs": _mrc,
    ".star": _star,
    ".csv": _csv,
    ".json": lambda path: _tree(json.loads(path.read_text())),
    ".jsonl": lambda path: _columns(pd.read_json(path, lines=True, precise_float=True)),
    ".yaml": lambda path: _tree(yaml.safe_load(path.read_text())),
    ".npz": lambda path: dict(np.load(path)),
    ".npy": lambda path: {"values": np.load(path)},
}

if __name__ == "__main__":
    main()
