"""Servers on the loopback interface: one of S3, by moto, and one of HTTP that fails when it is told to."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import boto3
import gcsfs
import pytest
from gcp_storage_emulator.server import create_server
from moto.server import ThreadedMotoServer

from embedx.system import file_systems

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks without the proxies that the environment named when something in this process first asked for a URL."""


@contextlib.contextmanager
def s3_server() -> Iterator[Any]:
    """A server of S3 that the environment leads to while this lasts; yields a client."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    _DIRECT.open(f"http://127.0.0.1:{port}/moto-api/reset", b"").close()  # of what other servers here had
    with leads_to(port):
        yield boto3.client("s3")
    server.stop()


@contextlib.contextmanager
def leads_to(port: int) -> Iterator[None]:
    """While this lasts, the environment leads to a server of S3 at this port of the loopback interface."""
    file_systems.forget()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("no_proxy", "127.0.0.1")
        yield
    file_systems.forget()


@contextlib.contextmanager
def gcs_server(bucket: str) -> Iterator[Any]:
    """A server of Google's storage that the environment leads to while this lasts; yields a file system of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket=bucket)
    file_systems.forget()
    with contextlib.ExitStack() as stack:
        server.start()
        stack.callback(server.stop)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        patch.setenv("no_proxy", "127.0.0.1")
        yield gcsfs.GCSFileSystem(token="anon")
    file_systems.forget()


@contextlib.contextmanager
def no_access() -> Iterator[None]:
    """While this lasts, the server of S3 refuses keys that it does not know, which is all of them."""
    address = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"

    def allow(requests: bytes) -> None:
        _DIRECT.open(urllib.request.Request(address, requests, {"Content-Type": "text/plain"})).close()

    allow(b"0")
    try:
        yield
    finally:
        allow(b"inf")


def upload(client: Any, bucket: str, folder: Path, prefix: str = "") -> None:
    """Puts the files below a folder into a bucket, which is made if it isn't there."""
    client.create_bucket(Bucket=bucket)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.put_object(Bucket=bucket, Key=f"{prefix}{path.relative_to(folder)}", Body=path.read_bytes())


class HttpServer:
    """Serves a folder by HTTP.

    Args:
        folder: What it serves.
        ranges: Whether it sends parts of files.
        password: What a request must have, as the password of any user, or as the begin of its parameter `sig`. The
            parameter `id` then names the file.
    """

    def __init__(self, folder: Path, *, ranges: bool = True, password: str | None = None) -> None:
        self.folder = folder
        self.ranges = ranges
        self.password = password
        self.failures: list[int] = []
        """Statuses with which the next requests fail, 0 for a connection that is reset."""
        self.broken: dict[str, int] = {}
        """Statuses with which all requests of a target fail."""
        self.requests: list[tuple[str, str]] = []
        """Method and target of those that there were."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append((self.command, self.path))
                if outer.failures or self.path in outer.broken:
                    if (status := outer.failures.pop(0) if outer.failures else outer.broken[self.path]) != 0:
                        self.send_error(status)
                    return
                query = dict(parse_qsl(urlsplit(self.path).query))
                path = outer.folder / query.get("id", unquote(urlsplit(self.path).path).strip("/"))
                if outer.password and not self._is_allowed(query.get("sig", ""), outer.password):
                    self.send_error(403)
                    return
                if not path.exists():
                    self.send_error(404)
                    return
                data = _page(path) if path.is_dir() else path.read_bytes()
                wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if outer.ranges else None
                self.send_response(206 if wanted else 200)
                part = data[int(wanted[1]) : int(wanted[2]) + 1] if wanted else data
                self.send_header("Content-Type", "text/html" if path.is_dir() else "application/octet-stream")
                self.send_header("Content-Length", str(len(part)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(part)

            do_HEAD = do_GET

            def _is_allowed(self, signature: str, password: str) -> bool:
                user = base64.b64decode(self.headers.get("Authorization", "").removeprefix("Basic ")).decode()
                return signature.startswith(password) or user.partition(":")[2] == password

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        return Handler


class HubServer(HttpServer):
    """Serves dataset repositories as the Hugging Face hub does, from `folder/OWNER/NAME/COMMIT/…`.

    Args:
        folder: What it serves.
        branches: The commits of branches.
    """

    def __init__(self, folder: Path, branches: dict[str, str]) -> None:
        super().__init__(folder)
        self.branches = branches
        self.gated: set[str] = set()
        """The repositories to which nobody has access."""

    def answer(self, path: str) -> tuple[int, str, bytes | Path]:
        """The status, the hub's own name of an error, and the body."""
        asked = re.fullmatch(r"/(api/)?datasets/([^/]+/[^/]+)/?(revision|tree|resolve)?/?([^/]*)/?(.*)", path)
        if asked is None or not (self.folder / asked[2]).is_dir():
            return 404, "RepoNotFound", b""
        _, repo, verb, revision, below = asked.groups()
        if repo in self.gated:
            return 403, "GatedRepo", b""
        commit = self.branches.get(unquote(revision or "main"), revision)
        root = self.folder / repo / commit
        place = root / unquote(below)
        if not root.is_dir():
            return 404, "RevisionNotFound", b""
        if verb in (None, "revision"):
            return 200, "", json.dumps({"id": repo, "sha": commit}).encode()
        if not place.exists() or (verb == "resolve" and place.is_dir()):
            return 404, "EntryNotFound", b""
        return 200, "", place if verb == "resolve" else self._tree(root, place)

    def _tree(self, root: Path, folder: Path) -> bytes:
        files = sorted(folder.rglob("*"))
        return json.dumps(
            [
                {"type": "directory" if path.is_dir() else "file", "path": str(path.relative_to(root)), "oid": "0" * 40}
                | {"size": path.stat().st_size}
                for path in files
            ]
        ).encode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append((self.command, self.path))
                status, error, body = outer.answer(urlsplit(self.path).path)
                data = body.read_bytes() if isinstance(body, Path) else body
                if status == 200 and (wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))):
                    status, data = 206, data[int(wanted[1]) : int(wanted[2]) + 1]
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                if error:
                    self.send_header("X-Error-Code", error)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        return Handler


def _page(folder: Path) -> bytes:
    names = [f"{path.name}/" if path.is_dir() else path.name for path in sorted(folder.iterdir())]
    links = "".join(f'<a href="{quote(name)}">{name}</a>' for name in ["../", *names])
    return f'<html><a href="?C=N;O=D">sort</a>{links}</html>'.encode()
