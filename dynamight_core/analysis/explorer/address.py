"""How a person gets to the page without its token being read by others: not from process lists, nor from logs."""

import os
import stat
import sys
import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TextIO


@dataclass(frozen=True)
class PrivateFile:
    """A file that only its owner may read, and that leads to the page.

    Parameters
    ----------
    path
        of the file.
    """

    path: Path

    def show(self) -> None:
        """Open it in the browser, whose command line others can see."""
        webbrowser.open(self.path.as_uri())


@contextmanager
def open_page(address: str) -> Iterator[PrivateFile]:
    """Write a file that leads to an address, and remove it at the end."""
    # Only its owner may enter the folder.
    with tempfile.TemporaryDirectory(prefix="dynamight-") as folder:
        path = Path(folder) / "explorer.html"
        path.write_text(f'<!DOCTYPE html><meta http-equiv="refresh" content="0; url={escape(address)}">')
        yield PrivateFile(path)


def tell_address(address: str, path: Path) -> str:
    """Return the line for the user: the address, or where it is if others can read what is printed."""
    if _others_read(sys.stdout):
        return f"Explorer: open {path} in a browser (others can read this log, so that it does not have the address)"
    return f"Explorer: {address}"


def _others_read(stream: TextIO) -> bool:
    """Whether what is written goes into a file that others may read."""
    try:
        descriptor = stream.fileno()
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o044:
            return False
        folders = Path(os.readlink(f"/proc/self/fd/{descriptor}")).parents
        return all(folder.stat().st_mode & 0o011 for folder in folders)
    except OSError:
        # No regular file, or a system that does not tell its name.
        return False


def has_screen() -> bool:
    """Return whether a window can be opened."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
