"""What `dynamight explore` does under attack: many connections, large bodies, requests that are none.

    python -m benchmarks.explorer_load RUN [--idle 600] [--parallel 400] [--fuzzed 2000]

RUN is a finished run. While 600 connections say nothing, 400 at a time ask, bodies of 200 MB are sent (without the
token, with it, and in chunks) and 2,000 mutated requests, another thread asks every quarter of a second. Prints one
JSON object: memory (MB) before, at most and after; answers by status; and the longest wait (s) of the other thread.
"""

import argparse
import json
import random
import re
import resource
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tools.browser import Served

_BODY = 200_000_000


class Client:
    """Asks a served explorer.

    Parameters
    ----------
    served
        the server.
    """

    def __init__(self, served: Served):
        parts = urlsplit(served.address)
        self.place, self.token = (parts.hostname, parts.port), parse_qs(parts.query)["token"][0]
        self._status = Path(f"/proc/{served.process.pid}/status")

    def memory(self) -> float:
        """Return the memory of the server, MB."""
        return int(re.search(r"VmRSS:\s+(\d+)", self._status.read_text())[1]) / 1024

    def request(self, path: str = "/progress", body: bytes = b"{}", token: bool = True, length: int | None = None):
        """Return the bytes of a request."""
        lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body) if length is None else length}"]
        lines += [f"X-Token: {self.token}"] * token
        return "\r\n".join([*lines, "", ""]).encode() + body

    def status(self, text: bytes, more: int = 0, wait: float = 30.0) -> int | str:
        """Send bytes, and as many more; return the status of the answer, or what went wrong."""
        try:
            with socket.create_connection(self.place, timeout=wait) as connection:
                connection.sendall(text)
                block = b"x" * 2**20
                for _ in range(more // len(block)):
                    connection.sendall(block)
                connection.shutdown(socket.SHUT_WR)
                answer = connection.recv(4096)
                found = re.match(rb"HTTP/1\.1 (\d{3})", answer)
                return int(found[1]) if found else f"no status: {answer[:20]!r}"
        except OSError as error:
            return type(error).__name__


class Watch(threading.Thread):
    """Asks every quarter of a second, and measures memory."""

    def __init__(self, client: Client):
        super().__init__(daemon=True)
        self.client, self.waits, self.memory, self.going = client, {}, [], True
        self.phase, self.bad = "", Counter()

    def run(self) -> None:
        """Ask until told to stop."""
        while self.going:
            started = time.monotonic()
            status = self.client.status(self.client.request())
            waited = time.monotonic() - started
            self.waits[self.phase] = max(waited, self.waits.get(self.phase, 0.0))
            if status != 200:
                self.bad[status] += 1
            self.memory.append(self.client.memory())
            time.sleep(0.25)


def mutated(text: bytes, draw: random.Random) -> bytes:
    """Return a request with some bytes changed, removed, repeated or replaced by odd ones."""
    out = bytearray(text)
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(out) + 1)
        kind = draw.randrange(5)
        if kind == 0 and at < len(out):
            out[at] = draw.randrange(256)
        elif kind == 1:
            del out[at : at + draw.randint(1, 8)]
        elif kind == 2:
            out[at:at] = out[at : at + draw.randint(1, 30)]
        elif kind == 3:
            out[at:at] = draw.choice([b"\r\n", b"\0", b"\xff", b"NaN", b"-1", b"[" * 3000, b'"', b"1e999", b"\r\n\r\n"])
        else:
            out = out[:at] or bytearray(b"\n")
    return bytes(out) or b"\n"


def seeds(client: Client) -> list[bytes]:
    """Return requests of every kind to mutate."""
    bodies = {
        "/about": {},
        "/points": {"plane": [1, 2], "group": "all"},
        "/landscape": {"plane": [1, 2], "quantity": "density"},
        "/nearest": {"plane": [1, 2], "at": [0, 0]},
        "/uncertainty": {"row": 3},
        "/state": {"at": [0, 0], "half": "both"},
        "/difference": {"first": [0, 0], "last": [1, 0]},
        "/selection": {"polygon": "1,2: -9,-9 9,-9 9,9"},
        "/colours": {"column": "dynMotion1"},
        "/add_table": {"name": "a.csv", "text": "a,b\n1,2\n"},
        "/save_selection": {"options": {"along": ["1:-9:9"]}, "name": "a/b"},
    }
    posts = [client.request(path, json.dumps(values).encode()) for path, values in bodies.items()]
    return [*posts, f"GET /files/summary.json?token={client.token} HTTP/1.1\r\nHost: x\r\n\r\n".encode()]


def attack(client: Client, watch: Watch, idle: int, parallel: int, fuzzed: int) -> dict:
    """Return the answers by status to each attack; all idle connections stay open meanwhile."""
    watch.phase = "idle"
    waiting = [socket.create_connection(client.place, timeout=30) for _ in range(idle)]
    answers = {}
    time.sleep(3)
    watch.phase = "parallel"
    with ThreadPoolExecutor(parallel) as pool:
        asked = list(pool.map(lambda _: client.status(client.request("/about")), range(parallel)))
        answers["parallel"] = Counter(asked)
    chunked = client.request("/add_table").replace(b"Content-Length: 2", b"Transfer-Encoding: chunked")[:-2]
    bodies = {
        "without_token": client.request(token=False, length=_BODY, body=b""),
        "with_token": client.request("/add_table", length=_BODY, body=b""),
        "chunked": chunked + f"{_BODY:x}\r\n".encode(),
    }
    watch.phase = "bodies"
    with ThreadPoolExecutor(3) as pool:
        for name, text in bodies.items():
            answers[name] = Counter(pool.map(lambda _, text=text: client.status(text, _BODY), range(3)))
    watch.phase = "fuzzed"
    draw, kinds = random.Random(0), seeds(client)
    texts = [mutated(draw.choice(kinds), draw) for _ in range(fuzzed)]
    with ThreadPoolExecutor(8) as pool:
        answers["fuzzed"] = Counter(pool.map(client.status, texts))
    for connection in waiting:
        connection.close()
    return {name: {str(key): number for key, number in found.items()} for name, found in answers.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--idle", type=int, default=600)
    parser.add_argument("--parallel", type=int, default=400)
    parser.add_argument("--fuzzed", type=int, default=2000)
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with Served(arguments.run, "--threads", "1") as served:
        # Only here: the server has what the system gives.
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
        client = Client(served)
        for text in seeds(client)[:-2]:
            client.status(text, wait=120)
        before = client.memory()
        watch = Watch(client)
        watch.phase = "undisturbed"
        watch.start()
        time.sleep(5)
        answers = attack(client, watch, arguments.idle, arguments.parallel, arguments.fuzzed)
        time.sleep(2)
        watch.going = False
        watch.join()
        memory = {"before": before, "most": max(watch.memory), "after": client.memory()}
    told = {"memory_mb": {name: round(value) for name, value in memory.items()}, "answers": answers}
    told["longest_wait_s"] = {name: round(value, 2) for name, value in watch.waits.items()}
    print(json.dumps(told | {"watch_refused": dict(watch.bad)}, indent=1))


if __name__ == "__main__":
    main()
