"""A web server on the loopback interface that takes its time; for S3, the first folder of a path is a bucket."""

from __future__ import annotations

import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class SlowServer:
    """Serves files from memory, by their path; use it as a context, which yields its URL.

    Args:
        files: The contents by path, which has no slash in front.
        delay: The seconds before each answer.
    """

    def __init__(self, files: dict[str, bytes], delay: float = 0.0) -> None:
        self.files = files
        self.delay = delay
        self.hanging: set[str] = set()
        """The paths that get no answer while this server lives."""
        self.broken: dict[str, int] = {}
        """The statuses with which the requests of paths fail."""
        self.redirects: dict[str, str] = {}
        """The URLs to which paths lead."""
        self.broken_ranges = False
        """True where requests for more than 1,000 bytes of a file fail."""
        self.requests: list[tuple[str, tuple[int, int] | None]] = []
        """The path, and the first byte and the one behind the last, of those that there were."""
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a connection that is reset
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = unquote(self.path).partition("?")[0].removeprefix("/")
                found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                part = (int(found[1]), int(found[2]) + 1) if found else None
                with outer._lock:
                    if self.command == "GET":
                        outer.requests.append((path, part))
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                try:
                    if path in outer.hanging:
                        outer._over.wait()
                    time.sleep(outer.delay)
                finally:
                    with outer._lock:
                        outer.at_once -= 1
                self._answer(path, part)

            do_HEAD = do_GET

            def _answer(self, path: str, part: tuple[int, int] | None) -> None:
                data = outer.files.get(path)
                status = outer.broken.get(path, 404 if data is None else 206 if part else 200)
                if part and outer.broken_ranges and part[1] - part[0] > 1000:
                    status = 503
                status = 302 if path in outer.redirects else status
                body = (data or b"")[slice(*part) if part else slice(None)] if status < 300 else b""
                self.send_response(status)
                if status == 206 and part:
                    end = part[0] + len(body) - 1
                    self.send_header("Content-Range", f"bytes {part[0]}-{end}/{len(data or b'')}")
                self.send_header("Content-Length", str(len(data or b"") if self.command == "HEAD" else len(body)))
                if status == 302:
                    self.send_header("Location", outer.redirects[path])
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("ETag", '"x"')
                self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        return Handler
