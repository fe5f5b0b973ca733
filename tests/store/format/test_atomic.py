from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedx.store.format.atomic import make_folder, write_all, write_atomic
from tests.disks import fill, small_disk


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


@pytest.mark.parametrize("size", [100, 100_000])
def test_the_error_of_a_full_disk_names_the_file(tmp_path: Path, size: int) -> None:
    with small_disk(tmp_path / "disk") as disk:
        fill(disk)
        with pytest.raises(OSError, match="No space left on device: ") as caught:
            write_atomic(disk / "file", bytes(size))
        assert str(disk / "file") in str(caught.value)
        assert os.listdir(disk) == ["ballast"]


def test_what_stands_in_the_way_of_a_temporary_file_is_named_and_what_an_interrupted_run_left_is_not(
    tmp_path: Path,
) -> None:
    temporary = tmp_path / ".file.embedx-tmp"
    temporary.symlink_to(tmp_path / "elsewhere")
    write_atomic(tmp_path / "file", b"one")
    temporary.write_bytes(b"half")
    write_atomic(tmp_path / "file", b"two")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"two"}
    temporary.mkdir()
    with pytest.raises(OSError, match="embedx-tmp"):
        write_atomic(tmp_path / "file", b"three")
    assert (tmp_path / "file").read_bytes() == b"two"


def test_make_folder_makes_parents_and_minds_what_is_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path / "a" / "b" / "c")
    make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        make_folder(tmp_path / "file" / "x")
    with pytest.raises(FileNotFoundError, match="/proc/embedx"):  # as the kernel has it
        make_folder(Path("/proc/embedx/x"))
    monkeypatch.chdir(tmp_path)
    for folder in ("d/e", "f", "."):
        make_folder(Path(folder))
        assert Path(folder).is_dir()


@pytest.mark.parametrize("many", [False, True])
def test_many_files_are_written_in_folders_that_are_made_for_them(tmp_path: Path, many: bool) -> None:
    files = {tmp_path / f"a/{number % 7}/{number}": bytes([number, 1, 2]) for number in range(100)}
    write_all(((path, [data[:1], data[1:]]) for path, data in files.items()), below=tmp_path, many=many)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("many", [False, True])
def test_of_many_files_that_can_t_be_written_nothing_half_is_left(tmp_path: Path, many: bool) -> None:
    def files() -> Iterator[tuple[Path, list[bytes]]]:
        yield tmp_path / "a/one", [b"1"]
        yield tmp_path / "b/two", [b"2"]
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_all(files(), below=tmp_path, many=many)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    with pytest.raises(FileNotFoundError):
        write_all([(tmp_path / "gone/x/file", [])], below=tmp_path / "gone", many=many)
    assert not (tmp_path / "gone").exists()
