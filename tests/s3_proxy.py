"""A proxy on the loopback interface before moto's server of S3: slow, faulty, cut off or stopped as a test tells it.

    with s3_proxy() as proxy:
        proxy.client.create_bucket(Bucket="bucket")  # straight to the server, and not counted
        proxy.latency = 0.05
        proxy.on(7, LOSE)  # request 7 is done, and its answer lost
        proxy.on(lambda request: request.number % 3 == 0, Fault(status=503), times=10)
        proxy.hold_after(12)  # request 13 and those after it wait
        process = start("extract", …)  # the environment leads to the proxy
        if proxy.wait_held(process):  # False where the process ended before
            os.killpg(process.pid, signal.SIGKILL)
            proxy.release(forward=False)

Conditional writes are atomic here as on the real thing: the proxy lets one write at a time through to the server.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.utils import formatdate, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import boto3

from tests.servers import leads_to

_CODES = {403: "AccessDenied", 404: "NoSuchKey", 409: "ConditionalRequestConflict", 412: "PreconditionFailed"}
_CODES |= {500: "InternalError", 501: "NotImplemented", 503: "SlowDown"}
_OWN = ("connection", "keep-alive", "expect", "transfer-encoding", "content-length")
"""The headers of one connection, which are not forwarded."""
CONDITIONS = ("if-match", "if-none-match")
_PIECE = 1 << 16
_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@dataclass
class Request:
    """One request and what became of it.

    Args:
        number: Its number since the last `forget`, from 1 on, in the order of arrival.
        method: Its method.
        path: Its path, percent-encoded.
        query: The parameters of its query.
        headers: Its headers, with names in lower case.
        status: The status of the answer, or 0 while there is none; of a lost answer too.
        forwarded: True as soon as the server has done it.
        bytes_up: The number of bytes in its body.
        bytes_down: The number of bytes in the answer's body.
        over: True as soon as nothing more becomes of it.
    """

    number: int
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    status: int = 0
    forwarded: bool = False
    bytes_up: int = 0
    bytes_down: int = 0
    over: bool = False

    @property
    def key(self) -> str:
        """The key of the object, or empty for a bucket's requests."""
        return unquote(self.path.lstrip("/").partition("/")[2])

    @property
    def range(self) -> str:
        return self.headers.get("range", "")

    def __str__(self) -> str:
        query = "&".join(f"{name}={value}" for name, value in self.query.items())
        return " ".join(filter(None, (str(self.number), self.method, self.path, query, self.range, str(self.status))))


@dataclass(frozen=True)
class Fault:
    """What befalls a request.

    Args:
        status: The status of an answer that the server knows nothing of, or 0.
        reset: Whether the connection is reset before the request is forwarded.
        cut: The number of bytes of the answer's body after which the connection is reset; 0 loses the whole answer.
        latency: The seconds that the request waits before anything else.
        before: Called before the request is forwarded.
        after: Called when the server has done it, before the answer is sent.
    """

    status: int = 0
    reset: bool = False
    cut: int | None = None
    latency: float = 0.0
    before: Callable[[Request], object] | None = None
    after: Callable[[Request], object] | None = None


RESET = Fault(reset=True)
LOSE = Fault(cut=0)


@dataclass
class _Rule:
    matches: Callable[[Request], bool]
    fault: Fault
    times: float


def _never(_: Request) -> bool:
    return False


@dataclass
class S3Proxy:
    """The proxy's state, which may be changed while it runs.

    Args:
        server: The port of the server behind it.
        latency: The seconds that each request waits.
        bytes_per_second: The rate of each body, up and down; None for no limit.
        ignored: The headers that are taken off, in lower case, as by servers that ignore them.
        skew: The seconds by which the server's clock is ahead of the true time.
        requests: The requests since the last `forget`, in the order of arrival.
    """

    server: int
    latency: float = 0.0
    bytes_per_second: float | None = None
    ignored: tuple[str, ...] = ()
    skew: float = 0.0
    requests: list[Request] = field(default_factory=list)
    port: int = 0
    client: Any = None
    _rules: list[_Rule] = field(default_factory=list)
    _held: Callable[[Request], bool] = _never
    _era: int = 0
    _forward: bool = True
    _waiting: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _writing: threading.Lock = field(default_factory=threading.Lock)

    def on(self, when: int | Callable[[Request], bool], fault: Fault, times: float = float("inf")) -> None:
        """Lets a fault befall the request of this number, or those that match; of several rules the first counts."""
        matches = when if callable(when) else lambda request: request.number == when
        with self._changed:
            self._rules.append(_Rule(matches, fault, times))

    def hold_after(self, number: int) -> None:
        """Holds all requests after the one of this number, until `release`."""
        self.hold(lambda request: request.number > number)

    def hold(self, matches: Callable[[Request], bool]) -> None:
        """Holds the requests that match, until `release`."""
        with self._changed:
            self._held = matches

    def wait_held(self, process: subprocess.Popen[Any] | None = None, seconds: float = 60.0) -> bool:
        """Waits until a request is held; returns False if the process ended before."""
        end = time.monotonic() + seconds
        with self._changed:
            while not self._waiting:
                assert time.monotonic() < end, f"no request after {self.requests[-1:]}"
                if process is not None and process.poll() is not None:
                    return False
                self._changed.wait(0.02)
        return True

    def release(self, *, forward: bool = True) -> None:
        """Lets the requests that are held through, or resets their connections; further ones aren't held."""
        with self._changed:
            self._era += 1
            self._forward = forward
            self._held = _never
            self._changed.notify_all()

    def settle(self) -> None:
        """Waits until there is no request of which something may become still."""
        while not all(request.over for request in list(self.requests)):
            time.sleep(0.005)

    def forget(self) -> list[Request]:
        """Begins to count from 1 again, with no rules, no latency and no limits; returns the requests until now."""
        self.release(forward=False)
        with self._changed:
            requests, self.requests = self.requests, []
            self._rules = []
            self.latency, self.bytes_per_second, self.ignored, self.skew = 0.0, None, (), 0.0
        return requests

    def named(self, method: str, suffix: str = "") -> list[Request]:
        """Returns the requests of a method, to keys that end so."""
        return [one for one in list(self.requests) if one.method == method and one.key.endswith(suffix)]

    def arrive(self, method: str, target: str, headers: dict[str, str]) -> tuple[Request, Fault]:
        """Records a request, and finds the fault that befalls it."""
        parts = urlsplit(target)
        with self._changed:
            query = dict(parse_qsl(parts.query, keep_blank_values=True))
            request = Request(len(self.requests) + 1, method, parts.path, query, headers)
            self.requests.append(request)
            for rule in self._rules:
                if rule.times > 0 and rule.matches(request):
                    rule.times -= 1
                    return request, rule.fault
        return request, Fault()

    def passes(self, request: Request) -> bool:
        """Waits while a request is held; returns False if it is not to be forwarded then."""
        with self._changed:
            era = self._era
            if not self._held(request):
                return True
            self._waiting += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._era != era)
            self._waiting -= 1
            return self._forward

    def ask(self, request: Request, target: str, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Forwards a request to the server; returns the status, headers and body of its answer."""
        dropped = (*_OWN, *self.ignored)
        connection = http.client.HTTPConnection("127.0.0.1", self.server, timeout=60)
        with contextlib.closing(connection), self._writing if request.method not in ("GET", "HEAD") else _FREE:
            connection.putrequest(request.method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name not in dropped:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.putheader("Connection", "close")
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, *self._skewed(answer.getheaders(), answer.read())

    def _skewed(self, fields: list[tuple[str, str]], body: bytes) -> tuple[list[tuple[str, str]], bytes]:
        """Moves the times that an answer tells."""
        if not self.skew:
            return fields, body

        def moved(text: str) -> str:
            return formatdate(parsedate_to_datetime(text).timestamp() + self.skew, usegmt=True)

        def later(found: re.Match[bytes]) -> bytes:
            time = datetime.fromisoformat(found[1].decode()) + timedelta(seconds=self.skew)
            return b"<LastModified>%s</LastModified>" % time.strftime("%Y-%m-%dT%H:%M:%S.000Z").encode()

        fields = [
            (name, moved(value) if name.lower() in ("date", "last-modified") else value) for name, value in fields
        ]
        return fields, re.sub(b"<LastModified>([^<]*)</LastModified>", later, body)


_FREE = contextlib.nullcontext()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # an answer's head and body in one packet
    server: _Server

    def do_GET(self) -> None:
        proxy = self.server.proxy
        headers = {name.lower(): value for name, value in self.headers.items()}
        if self.path.startswith("/moto-api/"):
            self._answer(*proxy.ask(Request(0, self.command, self.path, {}, headers), self.path, self._body(None)))
            return
        request, fault = proxy.arrive(self.command, self.path, headers)
        try:
            self._serve(proxy, request, fault)
        finally:
            request.over = True

    def _serve(self, proxy: S3Proxy, request: Request, fault: Fault) -> None:
        body = self._body(proxy.bytes_per_second)
        request.bytes_up = len(body)
        time.sleep(proxy.latency + fault.latency)
        if fault.before:
            fault.before(request)
        if not proxy.passes(request) or fault.reset:
            self._reset()
            return
        if fault.status:
            status, fields, data = fault.status, [("Content-Type", "application/xml")], _error(fault.status)
        else:
            status, fields, data = proxy.ask(request, self.path, body)
            request.forwarded = True
        if fault.after:
            fault.after(request)
        request.status = status
        if fault.cut == 0:
            self._reset()
            return
        request.bytes_down = self._answer(status, fields, data, proxy.bytes_per_second, fault.cut)
        if fault.cut is not None:
            self.wfile.flush()
            self._reset()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def handle_expect_100(self) -> bool:
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def _body(self, rate: float | None) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            pieces = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                pieces.append(self._take(size, rate))
                self.rfile.readline()
            while self.rfile.readline().strip():
                """Skips the trailer."""
            return b"".join(pieces)
        return self._take(int(self.headers.get("Content-Length", 0)), rate)

    def _take(self, size: int, rate: float | None) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self.rfile.read(min(size - len(data), _PIECE if rate else size))
            if not piece:  # who sends it is gone: a server drops such a request
                raise ConnectionResetError
            time.sleep(len(piece) / rate if rate else 0)
            data += piece
        return bytes(data)

    def _answer(
        self,
        status: int,
        fields: list[tuple[str, str]],
        data: bytes,
        rate: float | None = None,
        cut: int | None = None,
    ) -> int:
        self.send_response_only(status)
        size = next((value for name, value in fields if name.lower() == "content-length"), str(len(data)))
        for name, value in fields:
            if name.lower() not in _OWN:
                self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", size if self.command == "HEAD" else str(len(data)))
        self.end_headers()
        if self.command == "HEAD" or status in (204, 304):
            return 0
        data = data[:cut]
        for begin in range(0, len(data), _PIECE if rate else len(data) or 1):
            piece = data[begin : begin + _PIECE] if rate else data
            time.sleep(len(piece) / rate if rate else 0)
            self.wfile.write(piece)
            self.wfile.flush()
        return len(data)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()  # in truth when the files of it are closed, at once after this
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that the end waits for them
    request_queue_size = 128

    def __init__(self, proxy: S3Proxy) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = proxy
        self._open: set[socket.socket] = set()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._open.discard(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing where who asked is gone."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    def server_close(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()


def _error(status: int) -> bytes:
    return f"<Error><Code>{_CODES[status]}</Code><Message>by the proxy</Message></Error>".encode()


@contextlib.contextmanager
def s3_process() -> Iterator[int]:
    """A server of S3 in a process of its own; yields its port."""
    command = [sys.executable, "-c", _SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.kill()


@contextlib.contextmanager
def s3_proxy() -> Iterator[S3Proxy]:
    """A server of S3 behind a proxy, to which the environment leads while this lasts."""
    with s3_process() as port:
        proxy = S3Proxy(port)
        server = _Server(proxy)
        proxy.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            with leads_to(proxy.port):
                proxy.client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
                yield proxy
                proxy.client.close()
        finally:
            proxy.release(forward=False)
            server.shutdown()
            thread.join()
            server.server_close()
