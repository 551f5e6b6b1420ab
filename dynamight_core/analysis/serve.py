"""The explorer's server: one page, and the actions of `explore.Explorer` behind it.

One person's browser asks a few questions a second: the standard library's server is enough, and nothing is to be
installed. It answers who knows the token in the page's address, and nobody else.
"""

import errno
import gzip
import hmac
import inspect
import json
import os
import secrets
import socket
import sys
import threading
import traceback
import webbrowser
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from mimetypes import guess_type
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from dynamight_core.analysis.explore import Answer, Explorer
from dynamight_core.errors import InputError

_ASSETS = Path(__file__).parent / "assets"
_SCRIPTS = ("explorer_draw.js", "explorer_landscape.js", "explorer_molecule.js", "explorer.js")
ACTIONS = (
    "about",
    "molecule",
    "columns",
    "add_table",
    "points",
    "colours",
    "landscape",
    "nearest",
    "state",
    "difference",
    "selection",
    "save_selection",
    "save_states",
    "progress",
)
# A user's table is the largest thing that a page sends.
_MOST_BYTES = 2**28
# Smaller answers are not worth compressing.
_COMPRESSED = 2**12


class ExplorerServer(ThreadingHTTPServer):
    """Serves the page of one explorer.

    Parameters
    ----------
    explorer
        of the run.
    host, port
        to listen at; port 0 takes a free one.

    Raises
    ------
    InputError
        if the port is taken or may not be used, or the host is not one of this machine.
    """

    daemon_threads = True

    def __init__(self, explorer: Explorer, host: str = "127.0.0.1", port: int = 8050):
        self.explorer, self.token = explorer, secrets.token_urlsafe(16)
        try:
            super().__init__((host, port), _Handler)
        except OverflowError as error:
            raise InputError(f"--port is {port}; give a number from 1 to 65535, or 0 for any free one") from error
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                raise InputError(f"--host {host} is no address of this machine; leave it out") from error
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                why = "in use" if error.errno == errno.EADDRINUSE else "reserved"
                raise InputError(f"port {port} is {why}; give another with --port, or 0 for any free one") from error
            raise

    @property
    def address(self) -> str:
        """The page's address, with its token."""
        return f"http://{self.server_address[0]}:{self.server_address[1]}/?token={self.token}"

    def page(self) -> str:
        """Return the page: one file, scripts and style in it."""
        text = (_ASSETS / "explorer.html").read_text(encoding="utf-8")
        scripts = "\n".join((_ASSETS / name).read_text(encoding="utf-8") for name in _SCRIPTS)
        style = (_ASSETS / "explorer.css").read_text(encoding="utf-8")
        return text.replace("/* style */", style).replace("/* scripts */", scripts)


def serve(
    explorer: Explorer,
    host: str = "127.0.0.1",
    port: int = 8050,
    browser: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the page until Ctrl-C.

    Parameters
    ----------
    explorer
        of the run.
    host, port
        to listen at; port 0 takes a free one.
    browser
        whether to open one, if there is a screen.
    say
        takes lines for the user.
    """
    with ExplorerServer(explorer, host, port) as server:
        port = server.server_address[1]
        say(f"Explorer: {server.address}")
        say(
            f"From another machine: ssh -N -L {port}:{server.server_address[0]}:{port} {socket.gethostname()} there, "
            "then open this address. Who has it can read the run and write to its folder analysis. Ctrl-C ends."
        )
        threading.Thread(target=_prepare, args=(explorer, say), daemon=True).start()
        if browser and has_screen():
            webbrowser.open(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("Ended.")


def _prepare(explorer: Explorer, say: Callable[[str], None]) -> None:
    """Compute ahead what the first click needs; the page says the same if it fails there."""
    try:
        explorer.prepare()
    except InputError as error:
        say(f"Error: {error}")


def has_screen() -> bool:
    """Return whether a window can be opened."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


class _Handler(BaseHTTPRequestHandler):
    """Answers one browser: GET / the page, GET /files/NAME a file of RUN/analysis, POST /ACTION an action."""

    protocol_version = "HTTP/1.1"
    server: ExplorerServer

    def do_GET(self) -> None:
        """Send the page or a file."""
        if not self._may():
            return
        path = unquote(urlsplit(self.path).path)
        if path == "/":
            self._send(self.server.page().encode(), "text/html; charset=utf-8")
        elif path.startswith("/files/"):
            try:
                file = self.server.explorer.file(path.removeprefix("/files/"))
            except InputError as error:
                self._refuse(HTTPStatus.NOT_FOUND, str(error))
            else:
                self._send(file.read_bytes(), guess_type(file.name)[0] or "application/octet-stream")
        else:
            self._refuse(HTTPStatus.NOT_FOUND, f"there is nothing at {path}")

    def do_POST(self) -> None:
        """Run an action on the JSON that was sent."""
        length = int(self.headers.get("Content-Length") or 0)
        if length > _MOST_BYTES:
            self.close_connection = True
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the explorer takes no more than 256 MB; send less")
            return
        body = self.rfile.read(length)
        if not self._may():
            return
        name = urlsplit(self.path).path.strip("/")
        if name not in ACTIONS:
            self._refuse(HTTPStatus.NOT_FOUND, f"there is no action {name}")
            return
        action = getattr(self.server.explorer, name)
        try:
            values = json.loads(body or b"{}")
            inspect.signature(action).bind(**values)
        except (ValueError, TypeError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, f"{name} cannot be understood: {error}")
            return
        try:
            answer = action(**values)
        except InputError as error:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except Exception as error:
            traceback.print_exc()
            self._refuse(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                f"{name} failed ({type(error).__name__}: {error}); the terminal of dynamight explore has the traceback",
            )
        else:
            self._send(pack(answer), "application/octet-stream")

    def log_message(self, *_) -> None:
        """Say nothing: the page shows what went wrong."""

    def _may(self) -> bool:
        """Return whether the request has the token, and refuse it if not."""
        query = parse_qs(urlsplit(self.path).query)
        given = self.headers.get("X-Token") or query.get("token", [""])[0]
        if hmac.compare_digest(given.encode(), self.server.token.encode()):
            return True
        self._refuse(
            HTTPStatus.FORBIDDEN,
            "this address has not the token of the explorer; copy the whole line that dynamight explore printed",
        )
        return False

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        self._send(json.dumps({"error": sentence}).encode(), "application/json", status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        zipped = len(body) > _COMPRESSED and "gzip" in self.headers.get("Accept-Encoding", "")
        if zipped:
            body = gzip.compress(body, 1)
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if zipped:
                self.send_header("Content-Encoding", "gzip")
            self.send_header("Cache-Control", "no-store")
            self.send_header("Referrer-Policy", "no-referrer")
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            # The browser has gone on to another question.
            self.close_connection = True


def pack(answer: Answer) -> bytes:
    """Return an answer as bytes: the length of a JSON head (4 bytes), the head, and the arrays it describes."""
    arrays = {name: np.ascontiguousarray(values) for name, values in answer.arrays.items()}
    described = [{"name": n, "type": a.dtype.str.lstrip("<|"), "shape": list(a.shape)} for n, a in arrays.items()]
    head = json.dumps({"values": answer.values, "arrays": described}).encode()
    # Typed arrays begin at multiples of four.
    head += b" " * (-len(head) % 4)
    parts = [len(head).to_bytes(4, "little"), head]
    for values in arrays.values():
        data = values.tobytes()
        parts += [data, b"\0" * (-len(data) % 4)]
    return b"".join(parts)
