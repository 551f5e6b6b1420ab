"""Mutated files of every kind, for every reader: each is read, or refused in a sentence.

    python -m benchmarks.fuzz [--seconds 600] [--seed 0]

Prints a line for each reader: files that were read, and refused, and those that ended in another exception. The first
of each kind of these is kept in a temporary folder that is printed, and the exit code is 1.
"""

import argparse
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

from dynamight_core.errors import InputError
from dynamight_core.limits import limit_of_system
from tools.readers import make_readers, mutated


def attempt(reader, path: Path) -> str:
    """Return what became of a file: "read", "refused", or the place of another exception."""
    try:
        reader.read(path)
    except InputError as error:
        return "refused" if str(error).strip() else "no sentence"
    except Exception as error:
        if limit_of_system(error) is not None:
            return "refused"
        where = [frame for frame in traceback.extract_tb(error.__traceback__) if "dynamight_core" in frame.filename]
        last = where[-1] if where else traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}: {str(error)[:80]!r}"
    return "read"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    draw, kept = random.Random(arguments.seed), Path(tempfile.mkdtemp(prefix="fuzz-"))
    found: dict[str, Counter] = {}
    with tempfile.TemporaryDirectory() as folder:
        readers = make_readers(Path(folder))
        for name, reader in readers.items():
            path = Path(folder) / reader.name
            if attempt(reader, path if path.exists() else write(path, reader.seed)) not in ("read", "refused"):
                sys.exit(f"{name}: the file to begin with cannot be read: {attempt(reader, path)}")
        end = time.monotonic() + arguments.seconds
        while time.monotonic() < end:
            for name, reader in readers.items():
                path = write(Path(folder) / reader.name, mutated(reader.seed, draw))
                outcome = attempt(reader, path)
                counts = found.setdefault(name, Counter())
                if outcome not in ("read", "refused") and not counts[outcome]:
                    (kept / f"{name}-{len(counts)}".replace("/", "_")).write_bytes(path.read_bytes())
                counts[outcome] += 1
                # The next reader may need it.
                path.write_bytes(reader.seed)
    bad = 0
    for name, counts in found.items():
        others = {what: number for what, number in counts.items() if what not in ("read", "refused")}
        bad += sum(others.values())
        print(f"{name}: {counts['read']} read, {counts['refused']} refused, {sum(others.values())} other")
        for what, number in others.items():
            print(f"    {number} x {what}")
    print(f"{sum(map(Counter.total, found.values()))} files, {bad} other exceptions" + (f"; see {kept}" if bad else ""))
    sys.exit(bad > 0)


def write(path: Path, contents: bytes) -> Path:
    """Write a file, and return its path."""
    path.write_bytes(contents)
    return path


if __name__ == "__main__":
    main()
