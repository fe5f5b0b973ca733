"""What is read from a server or a file that never ends: refused at a bound, told, and never held in memory."""

from __future__ import annotations

import contextlib
import gzip
import json
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from embedx.data.decoding.batch_rows import NoDecoder
from embedx.data.loading.batches import Batches
from embedx.data.loading.orders import Order, Orders
from embedx.data.reading.files import FileReader
from embedx.data.sources import parse_data
from embedx.data.sources.inline import image_of
from embedx.data.sources.root import Root
from embedx.data.sources.table_file import TableFile
from embedx.errors import CheckpointError, ConfigError
from embedx.system import downloads, links, remote

MIB = 1 << 20
REASON = "more than the 1.0 MiB of --max-bytes"


@contextlib.contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server on the loopback interface with this answer to each GET; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(ConnectionError):
                answer(self)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def begin(request: BaseHTTPRequestHandler, **headers: object) -> None:
    request.send_response(200)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), str(value))
    request.end_headers()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(remote, "_FIRST_DELAY", 0.001)


def load(location: str | Path) -> tuple[str | None, bool]:
    batch = Batches(FileReader(), NoDecoder(), 1, MIB)[Order(0, str(location).encode(), None, None)]
    return batch["reasons"][0], batch["unavailable"][0]


PEAK = r"""
import re, sys
from pathlib import Path
import aiohttp, embedx.system.remote
from embedx.data.reading.files import FileReader, RejectedInputError

def peak():  # ru_maxrss knows that of the parent
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])

before = peak()
for url in sys.argv[1:]:
    try:
        FileReader().read(url.encode(), most=1 << 20)
    except RejectedInputError as error:
        print(error)
print((peak() - before) // 1024)
"""


def test_a_bomb_and_an_endless_answer_are_rejected_in_little_memory() -> None:
    """3 MiB of gzip that are 3 GiB; and zeros without an end."""
    packer, zeros = zlib.compressobj(9, wbits=31), bytes(16 * MIB)
    first, more = (packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    bomb = first + 191 * more
    assert 2 * MIB < len(bomb) < 4 * MIB

    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.path == "/bomb":
            begin(request, Content_Encoding="gzip", Content_Length=len(bomb))
            request.wfile.write(bomb)
        begin(request)
        while True:
            request.wfile.write(bytes(MIB))

    with serving(answer) as url:
        command = [sys.executable, "-c", PEAK, f"{url}/bomb", f"{url}/endless"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    *reasons, peak = done.stdout.splitlines()
    assert reasons == [REASON, REASON]
    assert int(peak) < 100  # MiB; 3 GiB and more before


def test_files_are_read_up_to_the_bound(tmp_path: Path) -> None:
    (tmp_path / "whole").write_bytes(bytes(MIB))
    (tmp_path / "large").write_bytes(bytes(MIB + 1))
    assert load(tmp_path / "whole") == (None, False)
    assert load(tmp_path / "large") == (REASON, False)
    assert FileReader().read(b"/proc/self/status").startswith(b"Name:")  # of size 0, as the system says
    with pytest.raises(Exception, match=REASON):
        FileReader().read(str(tmp_path / "large").encode(), 0, MIB + 1, MIB)


def test_a_file_that_grows_ends_at_the_bound(tmp_path: Path) -> None:
    """A file of the kernel's, which says that it has no bytes, and has as many as there are processes' mappings."""
    size = len(Path("/proc/self/smaps").read_bytes())
    with pytest.raises(Exception, match=r"more than the .* of --max-bytes"):
        FileReader().read(b"/proc/self/smaps", most=size // 2)


@pytest.mark.parametrize("path", ["file:///dev/zero", "FILE:///dev/zero", "/dev/zero"])
def test_a_device_in_a_table_is_no_input_by_any_name(tmp_path: Path, path: str) -> None:
    located = Root(str(tmp_path), closed=False).locate(path)
    assert load(located) == ("not a regular file", False)
    assert load("local:///dev/zero")[0] == (
        "can't be read: ValueError: a file of this machine is read by its path alone; give that"
    )


@pytest.mark.parametrize("path", ["simplecache::file:///dev/zero", "zip://a::http://h/b.zip", "filecache://::s3://b/c"])
def test_a_chain_of_file_systems_in_a_table_is_refused_with_its_place(tmp_path: Path, path: str) -> None:
    (tmp_path / "table.csv").write_text(f"path\na.jpg\n{path}\n")
    with pytest.raises(ConfigError, match=r"line 3: the path .* chains file systems by `::`"):
        parse_data([str(tmp_path / "table.csv")])
    assert Root("/", closed=False).locate("http://[::1]/a::b.jpg") == "http://[::1]/a::b.jpg"


def test_a_redirect_leads_to_web_servers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By every door: inputs, tables, tars and checkpoints."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    secret = tmp_path / "secret"
    secret.write_text("path\nx.jpg\n")

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        loops = request.path.startswith("/loop")
        request.send_header("Location", request.path if loops else f"file://{secret}")
        request.end_headers()

    with serving(answer) as url:
        for path in ("input.jpg", "loop.jpg"):
            reason, is_unavailable = load(f"{url}/{path}")
            assert reason is not None and not is_unavailable
            assert reason.startswith("can't be read: a redirect that is not followed")
        for source in ("table.csv", "images.tar", "folder/"):
            with pytest.raises(ConfigError, match=f"{url}/{source}"):
                parse_data([f"{url}/{source}"])["all"].scan()
        with pytest.raises(CheckpointError, match="can't be fetched"):
            downloads.fetch(f"{url}/model.pth", lambda text: None)


def page(*names: str) -> bytes:
    return "".join(f'<a href="{name}">{name}</a>' for name in names).encode()


def test_folders_without_an_end_are_told_and_circles_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        kind = request.path.split("/")[1]
        names = {
            "deep": ["a.jpg", "x/"],
            "wide": [f"{number}/" for number in range(4)],
            "many": [f"{request.path.count('/')}-{number}.jpg" for number in range(60)] + ["x/"],
            "circle": ["b.jpg", "/circle/", "/circle/x/", "./", "../", "/circle/x/../"],
        }[kind]
        body = page(*names)
        begin(request, Content_Type="text/html", Content_Length=len(body))
        request.wfile.write(body)

    monkeypatch.setattr(links, "_MOST_PAGES", 50)
    monkeypatch.setattr(links, "_MOST_FILES", 1000)
    with serving(answer) as url:
        for path, text in [("deep", "folders more than 32 deep"), ("wide", "more than 50 folders"),
                           ("many", "more than 1,000 files")]:  # fmt: skip
            with pytest.raises(ConfigError, match=f"--data {url}/{path}/: .*{text}, such as {url}/{path}.*in a table"):
                parse_data([f"{url}/{path}/"])
        found = [file.url for file in remote.list_files(f"{url}/circle")]
        assert found == [f"{url}/circle/b.jpg", f"{url}/circle/x/b.jpg"]
        assert remote.find(f"{url}/circle/*.jpg") == found[:1]
        assert remote.find(f"{url}/circle/**/[!a].jpg") == found
        assert remote.find(f"{url}/deep/*/*.jpg") == [f"{url}/deep/x/a.jpg"]


def test_a_table_behind_a_url_unpacks_to_no_more_than_a_text_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedx.data.sources.table_file._MOST_UNPACKED", MIB)
    bomb, table = gzip.compress(b"path\n" + b"\n" * 8 * MIB), gzip.compress(b"path\na.jpg\n")

    def answer(request: BaseHTTPRequestHandler) -> None:
        body = bomb if "bomb" in request.path else table
        begin(request, Content_Length=len(body))
        request.wfile.write(body)

    with serving(answer) as url:
        assert TableFile(f"{url}/table.csv.gz").read()["path"].to_pylist() == ["a.jpg"]
        with pytest.raises(ConfigError, match=r"unpack to more than 1\.0 MiB"):
            TableFile(f"{url}/bomb.csv.gz")


def test_a_checkpoint_larger_than_the_disk_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    refused = pytest.raises(CheckpointError, match=r"it has \d+\.\d TiB, and .* are free")
    with serving(lambda request: begin(request, Content_Length=1 << 60)) as url, refused:
        downloads.fetch(f"{url}/model.pth", lambda text: None)


def test_bytes_in_a_table_have_the_same_bound(tmp_path: Path) -> None:
    import base64

    from embedx.data.sources.kinds import SourceOptions
    from embedx.data.sources.table import EmbeddedReader

    rows = [{"image": "data:image/png;base64," + base64.b64encode(bytes(size)).decode()} for size in (9, MIB + 1)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(image_of(rows[1]["image"])["bytes"]) > MIB
    batches = Batches(EmbeddedReader(SourceOptions()), NoDecoder(), 2, MIB)
    orders = [Order(row, str(tmp_path / "t.jsonl").encode(), row, None) for row in range(2)]
    assert batches.__getitems__(Orders.listed(orders))["reasons"] == [None, REASON]
