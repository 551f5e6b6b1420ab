"""What opens in the web browser: a run's report, and the engine's explorer."""

import atexit
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
import webbrowser
from pathlib import Path

from pyworkflow.gui.dialog import showError, showInfo
from pyworkflow.viewer import View

from dynamight_scipion import Plugin

_SCHEME = "http://"


class ExplorerView(View):
    """The engine's explorer, a page that it serves to the browser until Scipion is closed.

    Parameters
    ----------
    model
        DynamightModel.
    window
        Tk window that a message belongs to.
    """

    # Of each run folder, the process that serves it
    _servers: dict = {}
    _LOG = "analysis/explorer.log"
    _PATIENCE = 60  # seconds

    def __init__(self, model, window):
        View.__init__(self)
        self._model, self._window = model, window

    def show(self):
        """Start the server, which opens the page; or show where the page is that is open already."""
        folder, log = self._model.getRunFolder(), self._model.getRunPath(self._LOG)
        server = self._servers.get(folder)
        if server is not None and server.poll() is None:
            said = Path(log).read_text()
            # Without an address it is still starting, and will open the page itself.
            if _SCHEME in said:
                _open(_address(said))
            return
        program = Plugin.getProgram(f"explore {shlex.quote(folder)} --port 0")
        Path(log).unlink(missing_ok=True)
        # The address is in it, with which others could write to the run.
        with open(log, "w", opener=_private) as file:
            server = subprocess.Popen(
                ["bash", "-c", program],
                env=Plugin.getEnviron(),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        atexit.register(_end, server)
        self._servers[folder] = server
        self._wait(server, log, time.monotonic() + self._PATIENCE)

    def _wait(self, server, log, deadline):
        """Say where the page is, or why there is none, as soon as that is known."""
        said = Path(log).read_text().strip()
        if server.poll() is None and _SCHEME in said:
            showInfo("Explorer", f"The page opens in the browser. If it does not, open\n{_address(said)}", self._window)
        elif server.poll() is None and time.monotonic() < deadline:
            self._window.after(300, self._wait, server, log, deadline)
        else:
            _end(server)
            showError("Explorer", said.splitlines()[-1] if said else "The explorer did not start.", self._window)


def _private(path, flags):
    return os.open(path, flags, mode=0o600)


def _open(address):
    """Open an address by way of a file that only its owner can read: others see the command line of a browser."""
    folder = tempfile.mkdtemp(prefix="dynamight-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    page = Path(folder) / "explorer.html"
    page.write_text(f'<!DOCTYPE html><meta http-equiv="refresh" content="0; url={address}">')
    webbrowser.open(page.as_uri())


def _address(text):
    """Return the address of a page that a text names."""
    return next(word for word in text.split() if word.startswith(_SCHEME))


def _end(server):
    """End a server with all that it has started."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)


class BrowserView(View):
    """A page in the web browser."""

    def __init__(self, path):
        View.__init__(self)
        self._address = Path(path).resolve().as_uri()

    def show(self):
        """Open the page."""
        webbrowser.open(self._address)
