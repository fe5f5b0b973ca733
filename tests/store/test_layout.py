from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from embedx.store.layout import Unit, folder_name, index_files, index_path, shard_path

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


@given(NAMES)
@example("..")
@example(".")
@example("a/../../b")
@example("/etc/passwd")
@example("con")
@example("nul.txt")
@example("ends with dot.")
@example("\x00")
@example("%2E")
@example("%none")
def test_folder_name_is_one_plain_name_and_reads_back(name: str) -> None:
    encoded = folder_name(name)
    assert "/" not in encoded and "\\" not in encoded and "\0" not in encoded
    assert not encoded.startswith(".") and not encoded.endswith((".", " "))
    assert encoded.split(".")[0].lower() not in {"con", "nul", "aux", "prn", "com1", "lpt1"}
    assert encoded.isascii() and len(encoded) <= 200
    if "%~" not in encoded:
        assert unquote(encoded) == name


@given(NAMES, NAMES)
def test_different_names_never_share_a_folder(one: str, other: str) -> None:
    assert (folder_name(one) == folder_name(other)) == (one == other)


def test_a_name_too_long_for_a_file_system_is_cut_and_stays_distinct() -> None:
    names = ["x" * 300, "x" * 301, "ü" * 150]
    assert len({folder_name(name) for name in names}) == 3
    assert all(len(folder_name(name)) <= 200 for name in names)


@pytest.mark.parametrize(("name", "expected"), [(None, "%none"), ("", "%empty")])
def test_no_group_and_an_empty_name_have_folders_of_their_own(name: str | None, expected: str) -> None:
    assert folder_name(name) == expected != folder_name(expected)


def test_paths_of_a_unit() -> None:
    unit = Unit("train", 7)
    assert index_path(unit) == "index/train-00007.parquet"
    assert shard_path(unit, None) == "train/shard-00007.safetensors"
    assert shard_path(unit, folder_name("a cat/2")) == "train/a cat%2F2/shard-00007.safetensors"


def test_index_files_come_in_order_of_unit(tmp_path) -> None:
    (tmp_path / "index").mkdir()
    for name in ("b-00002", "b-100000", "a-00001-00003", "b-00010", "notes"):
        (tmp_path / "index" / f"{name}.parquet").touch()
    assert list(index_files(tmp_path)) == [("a-00001", 3), ("b", 2), ("b", 10), ("b", 100000)]
