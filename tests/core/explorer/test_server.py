"""The explorer's server: who is answered, and what with."""

import gzip
import http.client
import json
import socket
import threading

import pytest

from dynamight_core.analysis.explorer.page import page
from dynamight_core.analysis.explorer.server import ExplorerServer


@pytest.fixture
def server(explorer):
    with ExplorerServer(explorer, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


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
    ):
        found, answer = request(server, "POST", path, server.token, body)
        assert found == status
        assert message in json.loads(answer)["error"]


def test_a_port_in_use_is_refused(folder, server, dynamight):
    code, text = dynamight("explore", folder, "--no-browser", "--port", server.server_address[1])
    assert code == 2
    assert f"port {server.server_address[1]} is in use; choose another with --port" in text
