"""The rate of an extraction whose inputs come from afar, beside the same from the disk.

A small server on this machine answers each request after a set time, as a bucket of S3 and as a web server. In turn,
several times: `embedx extract` of a table of the files on the disk, and of tables of their URLs. The rate is the steady
one, as `bench.py` takes it. The server has no cores of its own; its share of CPU time is told. Memory is the most that
the processes that read and decode have of their own (anonymous memory), sampled while they run.

    python -m scripts.bench_remote measure --backbone mobilenet_v3_small --images 3000 --rounds 5
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote

import typer
from rich.console import Console
from rich.table import Table

from embedx.values import size_text
from scripts.bench import _steady, make_photographs

LEAST = {50: 0.9, 200: 0.8}
"""The rate over that from the disk, at least, by the milliseconds of a request."""
_DRAWN = 250
"""The number of different images."""
_UNITS = 16

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class _Files(asyncio.Protocol):
    """Answers GET and HEAD of files that are held in memory, and of parts of them, after a delay."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=1 << 22)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            method, target, _ = head.split(b" ", 2)
            _, milliseconds, path = unquote(target.decode()).split("/", 2) if target.count(b"/") > 1 else ("", "0", "")
            delay = int(milliseconds.removeprefix("ms")) / 1000 if milliseconds[2:].isdigit() else 0.0
            part = re.search(rb"(?i)\r\nrange: bytes=(\d+)-(\d+)", head)
            asyncio.get_running_loop().call_later(delay, self._answer, method, path, part)

    def _answer(self, method: bytes, path: str, part: re.Match[bytes] | None) -> None:
        if self._transport.is_closing():
            return
        data = self._files.get(path)
        status = "404 Not Found" if data is None else "206 Partial Content" if part else "200 OK"
        whole = data or b""
        body = memoryview(whole)[int(part[1]) : int(part[2]) + 1] if part else memoryview(whole)
        about = f"Content-Range: bytes {int(part[1])}-{int(part[1]) + len(body) - 1}/{len(whole)}\r\n" if part else ""
        head = (
            f'HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nETag: "x"\r\nAccept-Ranges: bytes\r\n'
            f"Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\n{about}\r\n"
        )
        self._transport.writelines([head.encode(), body] if method == b"GET" else [head.encode()])


@app.command()
def serve(folder: Annotated[Path, typer.Argument(help="The files of the buckets ms0, ms50, ms200, ….")]) -> None:
    """Serves a folder's files as `/msN/NAME`, N milliseconds after they are asked for; prints the port."""
    by_inode: dict[int, bytes] = {}  # as most names are hard links
    files = {}
    for path in folder.iterdir():
        files[path.name] = by_inode.setdefault(path.stat().st_ino, b"") or path.read_bytes()
        by_inode[path.stat().st_ino] = files[path.name]

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: _Files(files), "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(run())


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[tuple[int, int]]:
    """Runs the server; yields its port and its process's number."""
    command = [sys.executable, "-m", "scripts.bench_remote", "serve", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline()), process.pid
    finally:
        process.terminate()
        process.wait()


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class _Loaders(threading.Thread):
    """Notes the most anonymous memory that a process named embedx-loader has, and the CPU time of them all."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self.cpu: dict[int, float] = {}
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.2):
            for folder in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    status = (folder / "status").read_text()
                    if status.startswith("Name:\tembedx-loader") and (size := re.search(r"RssAnon:\s*(\d+)", status)):
                        self.most = max(self.most, int(size[1]) << 10)
                        self.cpu[int(folder.name)] = _cpu_seconds(int(folder.name))


def _extract(table: Path, out: Path, backbone: str, runtime: str, count: int, more: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "embedx", "extract", f"all={table}", "--backbone", backbone, "--weights", "random"]
    command += ["--key-column", "id", "--runtime", runtime, "--json", "--quiet", "--out", str(out)]
    command += ["--shard-size", str(count * 4096 // _UNITS), *more]
    loaders = _Loaders()
    loaders.start()
    begun = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - begun
    loaders.over.set()
    loaders.join()
    timings = json.loads(done.stdout.splitlines()[-1])["timings"]
    steady = _steady(out, 32)["steady"]
    shutil.rmtree(out)
    assert timings["inputs"] == count, timings
    return {
        "steady": steady,
        "whole": count / seconds,
        "memory": loaders.most,
        "cpu": sum(loaders.cpu.values()) / count * 1000,
    }


@app.command()
def measure(
    backbone: Annotated[str, typer.Option(help="A torchvision model.")] = "mobilenet_v3_small",
    runtime: Annotated[str, typer.Option(help="embedx's runtime.")] = "openvino",
    images: Annotated[int, typer.Option(help="How many inputs a run has.")] = 3000,
    rounds: Annotated[int, typer.Option(help="How often everything is measured.")] = 5,
    places: Annotated[str, typer.Option(help="Schemes and milliseconds.")] = "s3:50,s3:200,http:50,http:200",
    more: Annotated[str, typer.Option(help="Further arguments of the extractions.")] = "",
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 where a stated ratio is missed.")] = False,
) -> None:
    """Measures all in turn, and prints medians and ratios."""
    asked = [(scheme, int(delay)) for scheme, _, delay in (place.partition(":") for place in places.split(","))]
    found: dict[str, list[dict[str, Any]]] = {"disk": []}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_photographs(root / "images", _DRAWN, copies=-(-images // _DRAWN))
        names = sorted(os.listdir(root / "images"))
        with _server(root / "images") as (port, pid):
            os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "no_proxy": "127.0.0.1"}
            os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
            begins = {"disk": f"{root}/images/"}
            for scheme, delay in asked:
                host = "s3:/" if scheme == "s3" else f"http://127.0.0.1:{port}"
                begins[f"{scheme}, {delay} ms"] = f"{host}/ms{delay}/"
            for _ in range(rounds):
                for place, begin in begins.items():
                    table = root / "inputs.csv"
                    rows = (f"{begin}{name},{number}" for number, name in enumerate(names[:images]))
                    table.write_text("path,id\n" + "\n".join(rows) + "\n")
                    before = _cpu_seconds(pid)
                    result = _extract(table, root / "store", backbone, runtime, images, more.split())
                    result["server"] = (_cpu_seconds(pid) - before) / images * 1000
                    found.setdefault(place, []).append(result)
    _report(backbone, runtime, found, check=check)


def _report(backbone: str, runtime: str, found: dict[str, list[dict[str, Any]]], *, check: bool) -> None:
    rounds = len(found["disk"])
    table = Table(
        "", "images/s", "of disk", "whole run", "workers' CPU", "server's CPU", "memory of a worker",
        title=f"{backbone}, {runtime}, {_processor()}: medians of {rounds} rounds",
    )  # fmt: skip
    disk = [result["steady"] for result in found["disk"]]
    missed = []
    for name, results in found.items():
        rate = statistics.median(result["steady"] for result in results)
        ratio = statistics.median(result["steady"] / one for result, one in zip(results, disk, strict=True))
        whole = statistics.median(result["whole"] for result in results)
        server = statistics.median(result["server"] for result in results)
        cpu = statistics.median(result["cpu"] for result in results)
        memory = max(result["memory"] for result in results)
        low, high = (f(result["steady"] for result in results) for f in (min, max))
        table.add_row(
            name, f"{rate:.1f} ({low:.1f} to {high:.1f})", f"{ratio:.2f}", f"{whole:.1f}",
            f"{cpu:.2f} ms an image", f"{server:.2f} ms", size_text(memory),
        )  # fmt: skip
        delay = re.search(r"(\d+) ms", name)
        if delay and ratio < LEAST.get(int(delay[1]), 0):
            missed.append(f"{name}: {ratio:.2f} of the rate from the disk")
    Console(width=120).print(table)
    if check and missed:
        print(*missed, sep="\n", file=sys.stderr)
        raise typer.Exit(1)


def _processor() -> str:
    with contextlib.suppress(OSError):
        if name := re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()):
            return f"{os.cpu_count()} cores of {name[1]}"
    return f"{os.cpu_count()} cores of {platform.processor()}"


if __name__ == "__main__":
    app()
