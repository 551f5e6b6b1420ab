"""Sets of files that are replaced as a whole: what was there before is kept until all new files are written.

A stage writes many files that belong together. Before, links to the earlier ones are kept in ``.STAGE.earlier``. If the
stage fails or is killed, they are put back: at once, or by the next program that opens the run.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dynamight_core import processes
from dynamight_core.errors import InputError
from dynamight_core.files import write_error

_SUFFIX = ".earlier"
_log = logging.getLogger(__name__)
# Of sets that this process replaces, where their earlier files are.
_replacing: set[Path] = set()


@contextmanager
def all_or_nothing(root: Path, name: str, files: Callable[[], Iterable[Path]]) -> Iterator[None]:
    """Leave either the files that the block writes, or the earlier ones.

    Parameters
    ----------
    root
        folder that is locked for this process.
    name
        of the set.
    files
        returns the existing files of the set, all below `root`.
    """
    kept = root / f".{name}{_SUFFIX}"
    if kept in _replacing or not processes.is_first():
        yield
        return
    if kept.exists():
        # The lock is ours, so that its writer is dead.
        restore(root, name, files)
    part = root / f".{name}.{os.getpid()}.part"
    try:
        _link_all(files(), root, part)
        part.rename(kept)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise write_error(root, error) from error
    _replacing.add(kept)
    try:
        yield
    except BaseException:
        _put_back(root, kept, files)
        raise
    else:
        _discard(kept)
    finally:
        _replacing.discard(kept)


def unfinished(root: Path) -> list[str]:
    """Return the names of the sets in a folder that a program began to replace, and has not finished."""
    return sorted(path.name[1 : -len(_SUFFIX)] for path in root.glob(f".*{_SUFFIX}"))


def forget(root: Path) -> None:
    """Remove the earlier files of all sets that a killed program began to replace."""
    for name in unfinished(root):
        _discard(root / f".{name}{_SUFFIX}")


def restore(root: Path, name: str, files: Callable[[], Iterable[Path]]) -> None:
    """Put back the earlier files of a set whose writer was killed. Needs the lock on `root`."""
    _put_back(root, root / f".{name}{_SUFFIX}", files)
    _log.warning("Note: '%s' was interrupted in %s; its earlier results were restored.", name, root)


def _put_back(root: Path, kept: Path, files: Callable[[], Iterable[Path]]) -> None:
    earlier = {path.relative_to(kept) for path in kept.rglob("*") if path.is_file()}
    for path in list(files()):
        if path.relative_to(root) not in earlier:
            path.unlink(missing_ok=True)
    part = root / f".{kept.name[1:]}.{os.getpid()}.part"
    _link_all((kept / name for name in earlier), kept, part)
    for name in earlier:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(part / name, root / name)
    shutil.rmtree(part, ignore_errors=True)
    _discard(kept)


def _link_all(paths: Iterable[Path], root: Path, folder: Path) -> None:
    """Make links, or copies where the file system has no links, in a new folder to files below `root`."""
    folder.mkdir(parents=True)
    for path in paths:
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except OSError:
            shutil.copy2(path, target)


def _discard(kept: Path) -> None:
    """Remove kept files, so that a kill in between leaves nothing to put back."""
    part = kept.with_name(f".{kept.name[1:]}.{os.getpid()}.part")
    with suppress(FileNotFoundError):
        kept.rename(part)
    shutil.rmtree(part, ignore_errors=True)


def check_outputs(outputs: Iterable[str | Path], inputs: Iterable[str | Path | None], option: str) -> None:
    """Refuse to write a file that is an input, whatever path or link leads there.

    Raises
    ------
    InputError
        naming `option`.
    """
    taken = {place for path in inputs if path for place in places(path)}
    for path in outputs:
        if taken & places(path):
            raise InputError(f"{option} is {path}, which is an input; choose another name")


def places(path: str | Path) -> set[str]:
    """Return where a file is: its own place, and the one it leads to if it is a link."""
    folder, name = os.path.split(os.path.abspath(path))
    return {os.path.join(os.path.realpath(folder), name), os.path.realpath(path)}
