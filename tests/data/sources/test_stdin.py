"""Paths on stdin; the reference for embeddings is the folder of the same images."""

from __future__ import annotations

import io
import os
import pty
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import embedx
from embedx import ExtractConfig, sample
from embedx.data.plan import build_plan
from embedx.data.sources import parse_data
from embedx.data.sources.kinds import SourceOptions
from embedx.errors import ConfigError
from embedx.run.extract import extract
from tests.runs import EMBEDX, OFFLINE

NAMES = ("a/1.png", "a/two words.png", "b/line\nbreak.png")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    pictures = sorted((sample.IMAGES / "val").rglob("*.png"))
    for name, picture in zip(NAMES, pictures, strict=False):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(picture, root / name)
    return root


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts bytes on this process's stdin."""

    def put(content: bytes) -> None:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: False))

    return put


def rows(*specs: str, null: bool = False) -> list[dict[str, Any]]:
    (source,) = parse_data(specs or ["-"], SourceOptions(null=null)).values()
    listed: list[dict[str, Any]] = source.scan().to_pylist()
    return listed


def test_lines_are_paths_in_their_order(stdin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.jpg").write_bytes(b"12345")
    stdin(b"./b/x.jpg\r\n\nhere.jpg\n/abs/\xff.jpg\n  \nhttps://host/y.jpg")
    found = rows()
    here = bytes(tmp_path)
    assert [row["key"] for row in found] == ["./b/x.jpg", "here.jpg", "/abs/\\xff.jpg", "  ", "https://host/y.jpg"]
    assert [row["path"] for row in found[:3]] == [here + b"/./b/x.jpg", here + b"/here.jpg", b"/abs/\xff.jpg"]
    assert found[4]["path"] == b"https://host/y.jpg"
    assert [row["parent"] for row in found] == ["./b", None, "/abs", None, "https://host"]
    assert [row["size"] for row in found] == [None, 5, None, None, None]


def test_with_null_only_nul_ends_a_path(stdin: Any) -> None:
    stdin(b"a\nb.jpg\0 \0c.jpg\r\0\0d.jpg")
    assert [row["key"] for row in rows("train=-", null=True)] == ["a\nb.jpg", " ", "c.jpg\r", "d.jpg"]


@pytest.mark.parametrize(
    ("content", "null", "message"),
    [
        (b"", False, "there are no paths on stdin"),
        (b"\n\r\n", False, "there are no paths on stdin"),
        (b"\0\0", True, "there are no paths on stdin"),
        (b"a.jpg\0b.jpg\0", False, "end in NUL; add --null"),
    ],
)
def test_stdin_without_paths_is_a_fault(stdin: Any, content: bytes, null: bool, message: str) -> None:
    stdin(content)
    with pytest.raises(ConfigError, match=message):
        rows(null=null)


def test_a_path_that_is_there_twice_is_a_fault(stdin: Any) -> None:
    stdin(b"a.jpg\nb.jpg\na.jpg\n")
    with pytest.raises(ConfigError, match=r"1 keys occur more than once, such as 'a\.jpg'"):
        build_plan(parse_data(["-"]), None)


def test_stdin_is_read_once_and_null_is_for_it_alone(stdin: Any, images: Path) -> None:
    stdin(b"a.jpg\n")
    with pytest.raises(ConfigError, match="--data b=-: - can be read only once"):
        parse_data(["a=-", "b=-"])
    with pytest.raises(ConfigError, match="--null is for paths on stdin, and no source is of that kind"):
        parse_data([str(images)], SourceOptions(null=True))


def test_a_terminal_or_a_closed_stdin_is_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ConfigError, match=r"stdin is no list of paths; pipe one in, as in find"):
        parse_data(["-"])
    here, there = pty.openpty()
    with os.fdopen(here, "rb", 0), os.fdopen(there, "r") as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        with pytest.raises(ConfigError, match="pipe one in"):
            parse_data(["-"])


def test_what_find_prints_gives_the_folder_s_embeddings(tmp_path: Path, images: Path) -> None:
    settings: dict[str, Any] = {"backbone": sample.BACKBONE, "weights": "sample", "workers": 0, "batch_size": 4}
    extract(ExtractConfig(**settings, out=tmp_path / "folder", data=(str(images),)))
    expected = embedx.open(tmp_path / "folder").load("all")
    command = 'find . -name "*.png" -print0 | "$@"'
    extract_command = [*EMBEDX, "extract", "--data", "train=-", "-0", "--backbone", sample.BACKBONE]
    options = ["--weights", "sample", "-j", "2", "-b", "4", "--group-key", "parent", "--out", str(tmp_path / "store")]
    done = subprocess.run(
        ["bash", "-c", command, "bash", *extract_command, *options],
        capture_output=True,
        text=True,
        env=os.environ | OFFLINE,
        cwd=images,
        timeout=110,
    )
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/store/manifest.json\n"), done.stderr
    found = embedx.open(tmp_path / "store").load("train")
    assert found.targets is None and sorted(map(str, found.groups)) == ["./a", "./a", "./b"]
    by_key = dict(zip(found.keys, found.embeddings, strict=True))
    assert set(by_key) == {f"./{name}" for name in NAMES}
    for key, embedding in zip(expected.keys, expected.embeddings, strict=True):
        assert np.array_equal(by_key[f"./{key}"], embedding), key


def test_a_folder_among_the_paths_is_rejected(tmp_path: Path, images: Path, stdin: Any) -> None:
    stdin(f"{images}/a\n{images}/a/1.png\ngone.png\n".encode())
    settings: dict[str, Any] = {"backbone": sample.BACKBONE, "weights": "sample", "workers": 0, "batch_size": 4}
    assert extract(ExtractConfig(**settings, out=tmp_path / "store", data=("-",))).rejected == 2
    reasons = [row["reason"] for row in embedx.open(tmp_path / "store").index().sort_by("index").to_pylist()]
    assert reasons == ["not a regular file", None, "can't be read: No such file or directory"]
