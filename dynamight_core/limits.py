"""Failures of the system that a user can act on, in words: room, permissions, memory, threads, open files."""

import errno
from pathlib import Path

from dynamight_core.files import system_error

# What PyTorch and Python say when memory or threads run out.
_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "unable to allocate")
_THREADS = ("can't start new thread", "resource temporarily unavailable")
_CURES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a folder you may read and write"),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP), "choose another path"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room, or choose another folder"),
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or choose another file system",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (ulimit -n)"),
    **dict.fromkeys((errno.EIO, errno.ESTALE), "check the disk or network folder, and run the command again"),
    errno.ENOMEM: "use a machine with more memory, or a smaller --batch-size",
    errno.ENOENT: "restore it, or check the path",
}


def limit_of_system(error: BaseException) -> str | None:
    """Return a sentence for a failure of files, memory or threads, or None for any other failure."""
    found = system_error(error)
    if found is not None and found.errno in _CURES:
        name = found.filename if found.errno == errno.ENOENT else Path(found.filename or ".").parent
        return f"cannot use {name}: {(found.strerror or str(found)).lower()}; {_CURES[found.errno]}"
    told = str(error).lower()
    if isinstance(error, MemoryError) or any(words in told for words in _MEMORY):
        return "memory is exhausted; use a smaller --batch-size, or a machine or GPU with more memory"
    if isinstance(error, RuntimeError | OSError) and any(words in told for words in _THREADS):
        return "the system starts no more threads; use fewer --threads, or raise the limit (ulimit -u)"
    return None
