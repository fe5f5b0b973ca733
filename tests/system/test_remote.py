"""What is read by HTTP from a server that fails, and what can't be read at all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.registry import _registry

from embedx.data.reading.files import FileReader, RejectedInputError, check_urls, is_url, open_file, plain_name
from embedx.errors import ConfigError
from embedx.system import remote
from tests.servers import HttpServer

CONTENT = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(remote, "_FIRST_DELAY", 0.01)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HttpServer]:
    (tmp_path / "file").write_bytes(CONTENT)
    yield HttpServer(tmp_path)


def read(url: str, *part: int) -> bytes:
    return FileReader().read(url.encode(), *part)


@pytest.mark.parametrize(
    ("location", "expected"),
    [("s3://b/k", True), (b"https://h/x", True), ("S3+x://b", True), ("/a/b://c", False), ("torchvision:X", False),
     ("a.jpg", False), (b"\xff://x", False), ("C:/x", False)],
)  # fmt: skip
def test_what_begins_with_a_scheme_is_a_url(location: str | bytes, expected: bool) -> None:
    assert is_url(location) == expected


def test_the_kind_of_a_url_is_told_without_its_query() -> None:
    assert plain_name("https://h/a%20b.tar?sig=x/y.csv#z") == "https://h/a b.tar"
    assert plain_name("s3://b/a?b%20c.tar") == "s3://b/a?b%20c.tar"
    assert plain_name("/a?b.csv") == "/a?b.csv"


@pytest.mark.parametrize("failures", [[503, 500, 429], [0, 0], [408]])
def test_what_fails_for_a_while_is_read_in_the_end(server: HttpServer, failures: list[int]) -> None:
    with server as url:
        server.failures = list(failures)
        assert read(f"{url}/file") == CONTENT
        server.failures = list(failures)
        assert read(f"{url}/file", 1000, 200) == CONTENT[1000:1200]
        assert len(server.requests) >= 2 * (len(failures) + 1)


def test_a_file_is_read_at_any_place_though_requests_fail(server: HttpServer) -> None:
    with server as url:
        server.failures = [0, 0, 503, 503]
        with open_file(f"{url}/file", in_parts=True) as file:
            assert file.seek(0, 2) == len(CONTENT)
            server.failures = [500, 0, 503]
            file.seek(300)
            assert file.read(100) == CONTENT[300:400]
            file.seek(-10, 2)
            assert file.read() == CONTENT[-10:] and file.read(1) == b""


@pytest.mark.parametrize(
    ("failures", "reason", "requests"),
    [
        ([503] * 9, "503 Service Unavailable, at each of 4 attempts", 4),
        ([404], "not found", 1),
        ([403], "no access (403 Forbidden)", 1),
        ([401], "no access (401 Unauthorized)", 1),
        ([400], "400 Bad Request", 1),
    ],
)
def test_what_can_not_be_read_is_rejected_with_the_reason_and_without_the_query(
    server: HttpServer, failures: list[int], reason: str, requests: int
) -> None:
    with server as url:
        server.failures = failures
        with pytest.raises(RejectedInputError) as caught:
            read(f"{url}/file?token=secret")
        assert str(caught.value) == f"can't be read: {reason}"
        assert server.requests == [("GET", "/file?token=secret")] * requests


def test_files_in_memory_are_listed_and_read() -> None:
    """Of one process, as all that has no server."""
    fsspec.filesystem("memory").pipe({"/lake/a.jpg": CONTENT, "/lake/b/c.png": b"c"})
    files = list(remote.list_files("memory://lake"))
    assert [(file.path, file.size) for file in files] == [("a.jpg", len(CONTENT)), ("b/c.png", 1)]
    assert [read(file.url) for file in files] == [CONTENT, b"c"]
    assert remote.find("memory://lake/*.jpg") == [files[0].url]
    with pytest.raises(RejectedInputError, match="can't be read: not found"):
        read("memory://lake/d.jpg")


def test_a_server_that_is_not_there_and_an_unknown_scheme_are_reasons_too() -> None:
    with pytest.raises(RejectedInputError, match=r"can't be read: .*at each of 4 attempts"):
        read("http://127.0.0.1:9/file?token=secret")
    with pytest.raises(RejectedInputError, match="can't be read: ValueError: Protocol not known: nope"):
        read("nope://file")


def test_a_server_that_sends_whole_files_alone_gives_no_parts(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    with HttpServer(tmp_path, ranges=False) as url:
        assert read(f"{url}/file") == CONTENT
        with pytest.raises(RejectedInputError, match="sends no parts of files, only whole ones; download it"):
            read(f"{url}/file", 1000, 200)
        with pytest.raises(OSError, match="sends no parts of files"):
            open_file(f"{url}/file", in_parts=True)
        with open_file(f"{url}/file") as file:
            file.seek(5000)
            assert file.read(10) == CONTENT[5000:5010]


def test_a_part_that_is_cut_short_is_rejected(server: HttpServer) -> None:
    with server as url, pytest.raises(RejectedInputError, match="the file ends after 40 of the input's 100 bytes"):
        read(f"{url}/file", len(CONTENT) - 40, 100)


def test_an_answer_that_is_shorter_than_asked_for_does_not_pass_for_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/lake/t.csv": CONTENT})
    monkeypatch.setattr(type(memory), "cat_file", lambda *_, start=None, end=None: CONTENT[start : end - 40])
    with (
        open_file("memory://lake/t.csv") as file,
        pytest.raises(OSError, match=f"sent {len(CONTENT) - 40} bytes where {len(CONTENT)} were asked for"),
    ):
        file.read()


def test_schemes_that_can_not_be_read_are_told_all_at_once_without_the_query(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(_registry, "gs", raising=False)
    with pytest.raises(ConfigError) as caught:
        check_urls(["/a", "htps://h/x?token=secret", "htps://h/y", "s3://b/x", "gs://b/x", "oss://b/x"])
    unknown, missing, other = caught.value.faults
    assert unknown.startswith("htps://h/") and "unknown scheme 'htps'; did you mean https?" in unknown
    assert "secret" not in unknown
    assert missing == "gs://b/x: gs:// needs a package that is not installed: pip install 'embedx[cloud]'"
    assert other.startswith("oss://b/x: oss:// needs a package that is not installed: ") and "ossfs" in other


def test_paths_alone_import_nothing_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    program = (
        "import sys; from embedx.data.reading.files import FileReader, open_file; "
        f"FileReader().read({bytes(tmp_path / 'a.jpg')!r}); open_file({str(tmp_path / 'a.jpg')!r}).close(); "
        "sys.exit(' '.join({'fsspec', 'aiohttp', 'gcsfs', 's3fs'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
