"""The explorer's server: one page, and the actions of `session.Explorer` behind it.

It answers only requests with the token that is in the page's address (starlette, uvicorn).
"""

import asyncio
import errno
import hmac
import json
import secrets
import socket
import tempfile
import threading
import traceback
from http import HTTPStatus
from types import TracebackType

import pydantic
import uvicorn
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from dynamight_core.analysis.explorer.address import has_screen, open_page, tell_address
from dynamight_core.analysis.explorer.connections import Connection
from dynamight_core.analysis.explorer.page import page
from dynamight_core.analysis.explorer.session import Explorer
from dynamight_core.errors import InputError
from dynamight_core.reporter import PRINT, Reporter

# Largest request, and largest table (bytes), which are read one at a time.
_MAX_REQUEST, _MAX_TABLE = 2**20, 2**26
# Seconds for the body of a request to arrive, and actions that run at the same time: more of them take turns with the
# thread that answers.
_PATIENCE, _ACTIONS = 60.0, 4
# Smaller answers are not worth compressing, bytes.
_MIN_COMPRESSED = 2**12
_HEADERS = [("Cache-Control", "no-store"), ("Referrer-Policy", "no-referrer"), ("X-Content-Type-Options", "nosniff")]
_CHECKED = pydantic.ConfigDict(allow_inf_nan=False)


class ExplorerServer:
    """Serves the page of one explorer; a context manager.

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

    def __init__(self, explorer: Explorer, host: str = "127.0.0.1", port: int = 8050):
        self.explorer, self.token = explorer, secrets.token_urlsafe(16)
        self._socket = _listen(host, port)
        self.server_address: tuple[str, int] = self._socket.getsockname()[:2]
        config = uvicorn.Config(
            make_app(explorer, self.token),
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            headers=_HEADERS,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)

    @property
    def server_port(self) -> int:
        """Port that it listens on."""
        return self.server_address[1]

    @property
    def address(self) -> str:
        """Address of the page, with its token."""
        return f"http://{self.server_address[0]}:{self.server_port}/?token={self.token}"

    def serve_forever(self) -> None:
        """Answer requests until `shutdown`, or until Ctrl-C in the main thread."""
        self._server.run([self._socket])

    def shutdown(self) -> None:
        """End `serve_forever` in another thread."""
        self._server.should_exit = True

    def __enter__(self) -> "ExplorerServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()


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
    with ExplorerServer(explorer, host, port) as server, open_page(server.address) as file:
        host, port = str(server.server_address[0]), server.server_port
        reporter.say(tell_address(server.address, file.path))
        reporter.say(
            f"From another machine, run ssh -N -L {port}:{host}:{port} {socket.gethostname()} there and open the same "
            "address. Anyone with this address can read the run and write to its analysis folder. Press Ctrl-C to stop."
        )
        threading.Thread(target=_prepare, args=(explorer, reporter), daemon=True).start()
        if browser and has_screen():
            file.show()
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


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=1024)
    except OverflowError as error:
        raise InputError(f"--port is {port}; use a number from 1 to 65535, or 0 for any free port") from error
    except OSError as error:
        # Names that are not known have numbers of their own, below zero.
        if error.errno == errno.EADDRNOTAVAIL or (error.errno or 0) < 0:
            raise InputError(f"--host {host} is not an address of this machine; omit it to use 127.0.0.1") from error
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            why = "in use" if error.errno == errno.EADDRINUSE else "reserved"
            raise InputError(f"port {port} is {why}; choose another with --port, or 0 for any free port") from error
        raise


def make_app(explorer: Explorer, token: str) -> Starlette:
    """Return what is answered: GET / the page, GET /files/NAME a file of RUN/analysis, POST /ACTION an action."""
    # The types in their signatures hold: a page may send anything.
    checked = {name: pydantic.validate_call(config=_CHECKED)(action) for name, action in explorer.actions.items()}
    running, tables, html = CapacityLimiter(_ACTIONS), asyncio.Semaphore(1), page()

    async def send_page(request: Request) -> Response:
        return HTMLResponse(html)

    async def send_file(request: Request) -> Response:
        try:
            return FileResponse(explorer.saver.file(request.path_params["name"]))
        except (InputError, ValueError, OSError) as error:
            raise HTTPException(HTTPStatus.NOT_FOUND, str(error)) from error

    async def act(request: Request) -> Response:
        name = request.path_params["action"]
        if name not in checked:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"there is no action {name}")
        if name != "add_table":
            values = _values(name, await _body(request, _MAX_REQUEST))
        else:
            async with tables:
                values = _values(name, await _body(request, _MAX_TABLE))
        # Whoever waits for an action wants to know how far it is.
        limiter = None if name == "progress" else running
        return await run_sync(_answer, name, checked[name], values, limiter=limiter)

    return Starlette(
        routes=[
            Route("/", send_page),
            Route("/files/{name:path}", send_file),
            Route("/{action:path}", act, methods=["POST"]),
        ],
        middleware=[
            Middleware(_Guard, token=token),
            Middleware(GZipMiddleware, minimum_size=_MIN_COMPRESSED, compresslevel=1),
        ],
        exception_handlers={HTTPException: _refusal, ClientDisconnect: _refusal},
    )


class _Guard:
    """Refuses requests without the token, before their bodies are read."""

    def __init__(self, app: ASGIApp, token: str):
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        given = request.headers.get("X-Token") or request.query_params.get("token", "")
        answer = self._app
        if not hmac.compare_digest(given.encode("utf-8", "replace"), self._token):
            why = "the URL lacks the explorer's access token; copy the whole address that dynamight explore printed"
            answer = _error(HTTPStatus.FORBIDDEN, why)
        await answer(scope, receive, send)


async def _body(request: Request, limit: int) -> bytes:
    """Return the body of a request; refuse one that is too large or too slow."""
    too_large = f"a request may have at most {limit >> 20} MB; send a smaller table"
    try:
        # In a file until it is complete: only then it may take memory.
        with tempfile.SpooledTemporaryFile(_MAX_REQUEST) as body:
            async with asyncio.timeout(_PATIENCE):
                if int(request.headers.get("Content-Length", 0)) > limit:
                    raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_large)
                async for part in request.stream():
                    body.write(part)
                    if body.tell() > limit:
                        raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_large)
            body.seek(0)
            return body.read()
    except TimeoutError as error:
        why = f"the request was not complete after {_PATIENCE:g} s; send it again"
        raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, why) from error


def _values(name: str, body: bytes) -> dict:
    try:
        values = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise HTTPException(HTTPStatus.BAD_REQUEST, f"invalid request {name}: {error}") from error
    if not isinstance(values, dict):
        raise HTTPException(HTTPStatus.BAD_REQUEST, f"invalid request {name}: it is not an object")
    return values


def _answer(name: str, action, values: dict) -> Response:
    """Run an action, in a thread of its own."""
    try:
        return Response(action(**values).pack(), media_type="application/octet-stream")
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        return _error(HTTPStatus.BAD_REQUEST, f"invalid request {name}: {where}: {first['msg']}")
    except InputError as error:
        return _error(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
    except Exception as error:
        traceback.print_exc()
        why = f"{name} failed ({type(error).__name__}: {error}); the terminal of dynamight explore has the traceback"
        return _error(HTTPStatus.INTERNAL_SERVER_ERROR, why)


async def _refusal(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return _error(error.status_code, error.detail)
    return _error(HTTPStatus.BAD_REQUEST, "the request is not complete")


def _error(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"error": sentence.encode("utf-8", "replace").decode()}, status)
