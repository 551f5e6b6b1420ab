"""The explorer's server: who is answered, and what with."""

import gzip
import http.client
import json
import os
import shutil
import socket
import stat
import sys
import tempfile
import threading
import webbrowser
from contextlib import contextmanager
from pathlib import Path

import pytest

from dynamight_core.analysis.explorer import connections
from dynamight_core.analysis.explorer.address import open_page, tell_address
from dynamight_core.analysis.explorer.page import page
from dynamight_core.analysis.explorer.server import ExplorerServer


@contextmanager
def serving(explorer):
    """Serve a run's page in a thread."""
    with ExplorerServer(explorer, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def server(explorer):
    with serving(explorer) as server:
        yield server


def request(server, method, path, token=None, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    headers = {} if token is None else {"X-Token": token}
    connection.request(method, path, json.dumps(body or {}), headers | {"Accept-Encoding": "gzip"})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, gzip.decompress(data) if answer.getheader("Content-Encoding") == "gzip" else data


def test_only_who_has_the_token_is_answered(server):
    for method, path in [
        ("GET", "/"),
        ("GET", "/files/summary.json"),
        *(("POST", f"/{name}") for name in server.explorer.actions),
    ]:
        for token in (None, "wrong"):
            status, body = request(server, method, path, token)
            assert status == 403
            assert "token" in json.loads(body)["error"]
    assert request(server, "GET", "/files/summary.json", server.token)[0] == 200
    assert request(server, "GET", "/files/../config.yaml", server.token)[0] == 404
    assert socket.inet_aton(server.server_address[0]) == b"\x7f\x00\x00\x01"


def test_the_page_is_sent_to_who_has_the_token(server):
    status, sent = request(server, "GET", "/", server.token)
    assert status == 200
    assert sent.decode() == page()


def test_requests_that_make_no_sense_are_answered_with_a_sentence(server):
    for path, body, status, message in (
        ("/nothing", {}, 404, "no action nothing"),
        ("/state", {"where": 1}, 400, "invalid request state"),
        ("/state", {"at": [0, 0, 0, 0]}, 422, "4 coordinates"),
        ("/landscape", {"plane": [1, 2], "quantity": "beauty"}, 422, "beauty"),
        ("/state", {"at": "here"}, 400, "invalid request state"),
        ("/state", {"at": [float("nan")] * 2}, 400, "finite"),
        ("/state", [1, 2], 400, "not an object"),
        ("/about", {"a": "x" * 2**21}, 413, "at most 1 MB"),
    ):
        found, answer = request(server, "POST", path, server.token, body)
        assert found == status
        assert message in json.loads(answer)["error"]


def answer_to(server, text, ends=True):
    """Return all that is answered to bytes on a connection of their own."""
    with socket.create_connection(server.server_address, timeout=30) as connection:
        connection.sendall(text)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


HEAD = b"POST /about HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 400),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400),
        (HEAD + b"Content-Length: many\r\n\r\n", 400),
        (HEAD + b"Content-Length: 10\r\n\r\n", 403),
        (HEAD + b"X-Token: TOKEN\r\nContent-Length: 10\r\n\r\n{}", 400),
        (HEAD + b"X-Token: TOKEN\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (HEAD + b"X-Token: TOKEN\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (HEAD + b"X-Token: TOKEN\r\nContent-Length: 3\r\n\r\n\xff\xfe\xfd", 400),
        (b"DELETE /about HTTP/1.1\r\nHost: x\r\nX-Token: TOKEN\r\n\r\n", 405),
        (b"GET /files/%00 HTTP/1.1\r\nHost: x\r\nX-Token: TOKEN\r\n\r\n", 404),
        (HEAD + b"X-Token: TOKEN\r\nContent-Length: 2\r\n\r\n{}", 200),
    ],
)
def test_whatever_is_sent_is_answered_with_a_status(server, text, status):
    answer = answer_to(server, text.replace(b"TOKEN", server.token.encode()))
    assert int(answer.split(b" ", 2)[1]) == status


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (HEAD, b"403"),
        # As Python's urllib asks.
        (HEAD + b"Connection: close\r\n", b"403"),
        (HEAD + b"Connection: close\r\nX-Token: TOKEN\r\n", b"413"),
        (HEAD + b"X-Token: TOKEN\r\n", b"413"),
        # Without a host.
        (b"POST /about HTTP/1.1\r\n", b"400"),
        (b"POST /about HTTP/7\r\n", b"400"),
    ],
)
def test_a_body_is_not_kept_if_it_is_refused_and_its_answer_arrives(server, head, status):
    with socket.create_connection(server.server_address, timeout=30) as connection:
        connection.sendall(head.replace(b"TOKEN", server.token.encode()) + b"Content-Length: 20000000\r\n\r\n")
        # Only then is the answer read.
        connection.sendall(b"x" * 20_000_000)
        assert connection.recv(12) == b"HTTP/1.1 " + status


def test_who_sends_nothing_or_too_slowly_is_not_waited_for(explorer, monkeypatch):
    monkeypatch.setattr(connections, "_PATIENCE", 0.5)
    monkeypatch.setattr("dynamight_core.analysis.explorer.server._PATIENCE", 0.5)
    with serving(explorer) as server:
        assert b" 408 " in answer_to(server, b"", ends=False)
        assert b" 408 " in answer_to(server, b"GET / HT", ends=False)
        slow = HEAD + b"X-Token: " + server.token.encode() + b"\r\nContent-Length: 5\r\n\r\n{"
        assert b" 408 " in answer_to(server, slow, ends=False)


def test_the_oldest_idle_connections_make_room(explorer, monkeypatch):
    monkeypatch.setattr(connections, "_MAX_CONNECTIONS", 20)
    with serving(explorer) as server:
        idle = [socket.create_connection(server.server_address, timeout=30) for _ in range(40)]
        assert request(server, "GET", "/", server.token)[0] == 200
        assert idle[0].recv(1) == b""
        for connection in idle:
            connection.close()


def test_the_token_is_in_no_process_list_and_in_no_log_that_others_read(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    address = "http://127.0.0.1:1/?token=secret"
    with open_page(address) as file:
        file.show()
        assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
        assert "secret" in file.path.read_text()
        assert "secret" not in opened[0]
        folder = Path(tempfile.mkdtemp(dir="/tmp"))
        for mode, told in ((0o755, False), (0o700, True)):
            folder.chmod(mode)
            with open(folder / "log", "w") as log:
                os.fchmod(log.fileno(), 0o644)
                monkeypatch.setattr(sys, "stdout", log)
                line = tell_address(address, file.path)
                monkeypatch.undo()
            assert ("secret" in line) == told
            assert told or str(file.path) in line
        shutil.rmtree(folder)
    assert not file.path.exists()


def test_a_port_in_use_is_refused(folder, server, dynamight):
    code, text = dynamight("explore", folder, "--no-browser", "--port", server.server_address[1])
    assert code == 2
    assert f"port {server.server_address[1]} is in use; choose another with --port" in text
