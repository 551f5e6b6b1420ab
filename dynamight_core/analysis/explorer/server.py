"""The explorer's server: one page, and the actions of `session.Explorer` behind it.

One person's browser sends a few requests a second, so the standard library's server is enough and needs no
installation. It answers only requests with the token that is in the page's address.
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
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from mimetypes import guess_type
from urllib.parse import parse_qs, unquote, urlsplit

from dynamight_core.analysis.explorer.page import page
from dynamight_core.analysis.explorer.session import Explorer
from dynamight_core.errors import InputError
from dynamight_core.reporter import PRINT, Reporter

# Largest request; a user's table is the largest thing that a page sends.
_MAX_BYTES = 2**28
# Smaller answers are not worth compressing, bytes.
_MIN_COMPRESSED = 2**12


class ExplorerServer(ThreadingHTTPServer):
    """Serves the page of one explorer.

    Parameters
    ----------
    explorer
        of the run.
    host, port
        to listen on; port 0 chooses a free port.

    Raises
    ------
    InputError
        if the port is in use or reserved, or the host is not an address of this machine.
    """

    daemon_threads = True

    def __init__(self, explorer: Explorer, host: str = "127.0.0.1", port: int = 8050):
        self.explorer, self.token = explorer, secrets.token_urlsafe(16)
        try:
            super().__init__((host, port), _Handler)
        except OverflowError as error:
            raise InputError(f"--port is {port}; use a number from 1 to 65535, or 0 for any free port") from error
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                raise InputError(
                    f"--host {host} is not an address of this machine; omit it to use 127.0.0.1"
                ) from error
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                why = "in use" if error.errno == errno.EADDRINUSE else "reserved"
                raise InputError(f"port {port} is {why}; choose another with --port, or 0 for any free port") from error
            raise

    @property
    def address(self) -> str:
        """Address of the page, with its token."""
        return f"http://{self.server_address[0]!s}:{self.server_port}/?token={self.token}"


def serve(
    explorer: Explorer, host: str = "127.0.0.1", port: int = 8050, browser: bool = True, reporter: Reporter = PRINT
) -> None:
    """Serve the page until Ctrl-C is pressed.

    Parameters
    ----------
    explorer
        of the run.
    host, port
        to listen on; port 0 chooses a free port.
    browser
        whether to open the page in a browser, if there is a screen.
    reporter
        takes lines for the user.
    """
    with ExplorerServer(explorer, host, port) as server:
        host, port = str(server.server_address[0]), server.server_port
        reporter.say(f"Explorer: {server.address}")
        reporter.say(
            f"From another machine, run ssh -N -L {port}:{host}:{port} {socket.gethostname()} there and open the same "
            "address. Anyone with this address can read the run and write to its analysis folder. Press Ctrl-C to stop."
        )
        threading.Thread(target=_prepare, args=(explorer, reporter), daemon=True).start()
        if browser and has_screen():
            webbrowser.open(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            reporter.say("Stopped.")


def _prepare(explorer: Explorer, reporter: Reporter) -> None:
    """Compute ahead what the first click needs; the page reports the same error if it fails."""
    try:
        explorer.prepare()
    except InputError as error:
        reporter.say(f"Error: {error}")


def has_screen() -> bool:
    """Return whether a window can be opened."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


class _Handler(BaseHTTPRequestHandler):
    """Answers one browser: GET / the page, GET /files/NAME a file of RUN/analysis, POST /ACTION an action."""

    protocol_version = "HTTP/1.1"
    server: ExplorerServer

    def do_GET(self) -> None:
        """Send the page or a file."""
        if not self._authorised():
            return
        path = unquote(urlsplit(self.path).path)
        if path == "/":
            self._send(page().encode(), "text/html; charset=utf-8")
        elif path.startswith("/files/"):
            try:
                file = self.server.explorer.saver.file(path.removeprefix("/files/"))
            except InputError as error:
                self._refuse(HTTPStatus.NOT_FOUND, str(error))
            else:
                self._send(file.read_bytes(), guess_type(file.name)[0] or "application/octet-stream")
        else:
            self._refuse(HTTPStatus.NOT_FOUND, f"there is nothing at {path}")

    def do_POST(self) -> None:
        """Run an action on the JSON that was sent."""
        length = int(self.headers.get("Content-Length") or 0)
        if length > _MAX_BYTES:
            self.close_connection = True
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "a request may have at most 256 MB; send a smaller table")
            return
        body = self.rfile.read(length)
        if not self._authorised():
            return
        name = urlsplit(self.path).path.strip("/")
        action = self.server.explorer.actions.get(name)
        if action is None:
            self._refuse(HTTPStatus.NOT_FOUND, f"there is no action {name}")
            return
        try:
            values = json.loads(body or b"{}")
            inspect.signature(action).bind(**values)
        except (ValueError, TypeError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, f"invalid request {name}: {error}")
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
            self._send(answer.pack(), "application/octet-stream")

    def log_message(self, *_) -> None:
        """Log nothing: the page shows what went wrong."""

    def _authorised(self) -> bool:
        """Return whether the request has the token, and refuse it if not."""
        query = parse_qs(urlsplit(self.path).query)
        given = self.headers.get("X-Token") or query.get("token", [""])[0]
        if hmac.compare_digest(given.encode(), self.server.token.encode()):
            return True
        self._refuse(
            HTTPStatus.FORBIDDEN,
            "the URL lacks the explorer's access token; copy the whole address that dynamight explore printed",
        )
        return False

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        self._send(json.dumps({"error": sentence}).encode(), "application/json", status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        zipped = len(body) > _MIN_COMPRESSED and "gzip" in self.headers.get("Accept-Encoding", "")
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
            # The browser has abandoned this request for a newer one.
            self.close_connection = True
