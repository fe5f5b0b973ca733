"""The condition under which an object of Google's storage is replaced, by a server that keeps to it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from embedx.system import file_systems, objects


class Storage(ThreadingHTTPServer):
    """Has one object, of a generation that may change between a look at it and the next write."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.shown, self.generation = "7", "7"
        self.bodies: list[bytes] = []


class Handler(BaseHTTPRequestHandler):
    server: Storage

    def do_GET(self) -> None:
        self._answer(200, {"name": "a/b", "bucket": "bucket", "size": "3", "generation": self.server.shown})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if parse_qs(urlsplit(self.path).query)["ifGenerationMatch"] != [self.server.generation]:
            self._answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
            return
        self.server.bodies.append(body)
        self.server.shown = self.server.generation = "8"
        self._answer(200, {"name": "a/b", "generation": "8"})

    def _answer(self, status: int, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    server = Storage()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    file_systems.forget()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield server
    file_systems.forget()
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_generation_that_was_seen_is_replaced(storage: Storage) -> None:
    assert objects.put("gs://bucket/a/b", b"new", replacing="7")
    (body,) = storage.bodies
    assert b'"name": "a/b"' in body and b"\r\n\r\nnew\r\n--" in body


def test_one_that_came_since_the_look_is_not(storage: Storage) -> None:
    storage.generation = "8"
    assert not objects.put("gs://bucket/a/b", b"new", replacing="7")
    assert storage.bodies == []
