from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest

from embedx.data.sources import base
from embedx.data.sources.base import repeated, size_and_time, sizes_and_times


def asked(*paths: bytes) -> list[tuple[int | None, int | None]]:
    sizes, times = sizes_and_times(pa.chunked_array([pa.array(paths, pa.binary())]))
    assert sizes.type == times.type == pa.int64()
    return list(zip(sizes.to_pylist(), times.to_pylist(), strict=True))


def test_sizes_and_times_are_what_the_file_system_says(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    names = [b"plain", b"\xff", "é".encode(), b"new\nline", b"a:b"]
    paths = [folder + b"/" + name for name in names]
    for number, path in enumerate(paths):
        Path(os.fsdecode(path)).write_bytes(bytes(number))
        os.utime(path, ns=(0, 1_234_567_890_123_456_789 - number))
    os.symlink(paths[3], folder + b"/link")
    expected = [(os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in [*paths, folder + b"/link"]]
    assert asked(*paths, folder + b"/link") == expected
    assert [size_and_time(path) for path in paths] == expected[:-1]


@pytest.mark.parametrize("beside", [b"/nowhere/at/all", b"s3://bucket/key", b"/" + b"x" * 300])
def test_what_can_t_be_asked_for_says_nothing_and_spoils_no_other(tmp_path: Path, beside: bytes) -> None:
    file, folder, pipe = (os.fsencode(tmp_path / name) for name in ("file", "folder", "pipe"))
    Path(os.fsdecode(file)).write_text("four")
    os.mkdir(folder)
    os.mkfifo(pipe)
    answers = asked(file, beside, folder, pipe, file)
    assert answers[0] == answers[4] == (4, os.stat(file).st_mtime_ns)
    assert answers[1] == (None, None)
    assert answers[2:4] == [(None, os.stat(folder).st_mtime_ns), (None, os.stat(pipe).st_mtime_ns)]
    assert answers == [size_and_time(path) for path in (file, beside, folder, pipe, file)]


def test_more_files_than_are_asked_for_at_a_time_stay_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_CHUNK", 3)
    paths = [os.fsencode(tmp_path / str(number)) for number in range(20)]
    for number, path in enumerate(paths):
        Path(os.fsdecode(path)).write_bytes(bytes(number))
    assert [size for size, _ in asked(*paths, *paths[::-1])] == [*range(20), *range(20)[::-1]]


def test_repeated_texts_are_found_whatever_their_hashes_are(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{number}" for number in range(100)]
    column = pa.chunked_array([texts, ["7", "x"], ["7", "99", "y"]])
    for rows in (2, 1 << 12):
        monkeypatch.setattr(base, "_CHUNK", rows)
        assert sorted(repeated(column)) == ["7", "99"]
        assert repeated(pa.chunked_array([texts])) == []
    monkeypatch.setattr(base, "hash", lambda text: len(text), raising=False)  # all of one length collide
    assert sorted(repeated(column)) == ["7", "99"]
    assert repeated(pa.chunked_array([texts])) == []
