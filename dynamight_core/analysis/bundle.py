"""What a report of a fault needs: the records of a run in one file, without images, maps, models and particles."""

import os
import platform
import sys
import time
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from dynamight_core.config import RunConfig
from dynamight_core.earlier import check_outputs
from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path
from dynamight_core.limits import limit_of_system
from dynamight_core.particles.memory import available_memory
from dynamight_core.particles.star import read_blocks
from dynamight_core.run import holds_run
from dynamight_core.version import __version__

# Text that stages write; tables of particles are larger.
_SUFFIXES = (".yaml", ".json", ".jsonl", ".csv", ".log", ".sh")
_MAX_BYTES = 2_000_000
# Rows of particles that show how a table is written.
_ROWS = 3


def write_bundle(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the records of a run, finished or not, to a ZIP file.

    It holds options, commands, metrics, results that are tables, the traceback of a failure, versions, the names and
    sizes of all files, and the columns and first rows of the particles.

    Parameters
    ----------
    run
        folder.
    out
        file; RUN-bundle.zip in the working folder if None.

    Returns
    -------
    Path
        of the file.

    Raises
    ------
    InputError
        if the folder holds no run, or the file cannot be written.
    """
    run = Path(run)
    if not holds_run(run):
        raise InputError(f"{run} contains no run (no config.yaml); use a folder written by dynamight train")
    out = Path(f"{run.resolve().name}-bundle.zip") if out is None else Path(out)
    files = [path for path in sorted(run.rglob("*")) if path.is_file()]
    check_outputs([out], files, "--out")
    with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("environment.txt", "\n".join(_environment()))
        bundle.writestr("files.txt", "\n".join(_listed(run, files)))
        bundle.writestr("particles.txt", "\n".join(_particles(run)))
        for path in files:
            name = path.relative_to(run).as_posix()
            if path.suffix in _SUFFIXES and path.stat().st_size <= _MAX_BYTES:
                bundle.writestr(name, path.read_bytes())
    return out


def _environment() -> Iterator[str]:
    """Yield the versions of program, Python, system and libraries, and what the machine has."""
    yield f"dynamight_core {__version__}"
    yield f"Python {sys.version}"
    yield f"{platform.platform()}, {os.cpu_count()} processors, {available_memory() / 1e9:.1f} GB of memory free"
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID"):
        if name in os.environ:
            yield f"{name}={os.environ[name]}"
    try:
        needed = requires("dynamight-core") or []
    except PackageNotFoundError:
        needed = []
    for requirement in needed:
        name = requirement.split(";")[0].split(">")[0].strip()
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"{name} not installed"


def _listed(run: Path, files: list[Path]) -> Iterator[str]:
    for path in files:
        status = path.stat()
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(status.st_mtime))
        yield f"{status.st_size:>14} {when} {path.relative_to(run)}"


def _particles(run: Path) -> Iterator[str]:
    """Yield the tables of the input particles: number of rows, columns, and the first rows."""
    try:
        star = Path(RunConfig.read(run).inputs.star)
        yield str(star)
        for name, table in read_blocks(star).items():
            yield f"data_{name}: {len(table)} rows"
            yield "\t".join(table.columns)
            yield from ("\t".join(row) for row in table.head(_ROWS).astype(str).itertuples(index=False))
    except (InputError, OSError) as error:
        # What is wrong belongs into the report.
        yield limit_of_system(error) or str(error)
