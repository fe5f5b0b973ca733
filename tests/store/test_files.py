from __future__ import annotations

import os
from pathlib import Path

import pytest

from embedx.store.files import make_folder, write_atomic


def test_a_written_file_is_whole_and_leaves_no_temporary_one(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", b"one")
    write_atomic(tmp_path / "file", b"two")
    assert (tmp_path / "file").read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_write_keeps_the_old_file_and_removes_its_temporary_one(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "inside").touch()
    with pytest.raises(OSError):
        write_atomic(tmp_path / "taken", b"new")
    assert (tmp_path / "taken" / "inside").is_file()
    assert os.listdir(tmp_path) == ["taken"]


def test_make_folder_makes_parents_and_minds_a_file_in_the_way(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b" / "c")
    make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        make_folder(tmp_path / "file" / "x")
