from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from embedx.store.format.layout import (
    GroupFolders,
    Unit,
    alike,
    can_be_shard,
    folder_name,
    index_files,
    index_path,
    other_shard_path,
    shard_path,
)

NAMES = st.text(st.characters() | st.characters(categories=["Cs"]) | st.sampled_from("aA.%/~ \0"), max_size=60)
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(10))}


def assert_is_a_good_folder(name: str) -> None:
    assert name.isascii() and name.isprintable() and 0 < len(name) <= 200
    assert not set(name) & set('/\\:*?"<>|')
    assert not name.startswith((".", " ")) and not name.endswith((".", " "))
    assert name.split(".")[0].rstrip().lower() not in DEVICES
    root = Path("/store")
    path = shard_path(Unit("train", 3), name)
    assert Path(os.path.normpath(root / path)) == root / "train" / name / "shard-00003.safetensors"


HOSTILE = {
    "..": "%2E%2E",
    ".": "%2E",
    "a/../../b": "a%2F..%2F..%2Fb",
    "/etc/passwd": "%2Fetc%2Fpasswd",
    "C:\\x": "C%3A%5Cx",
    "\0": "%00",
    "a\nb": "a%0Ab",
    ".hidden": "%2Ehidden",
    " ": "%20",
    "ends with dot.": "ends with dot%2E",
    "con": "%63on",
    "CON.txt": "%43ON.txt",
    "nul .txt": "%6Eul .txt",
    "aux.": "%61ux%2E",
    "Prn ": "%50rn%20",
    "lpt1.tar.gz": "%6Cpt1.tar.gz",
    "COM¹": "COM%C2%B9",
    "%2E": "%252E",
    "%none": "%25none",
    "é": "%C3%A9",
    "\ud800": "%ED%A0%80",
    "\udcc3\udca9": "%ED%B3%83%ED%B2%A9",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_leaves_its_place_or_means_something_to_a_system(name: str) -> None:
    assert folder_name(name) == HOSTILE[name]
    assert_is_a_good_folder(folder_name(name))
    assert unquote(folder_name(name), errors="surrogatepass") == name


@given(NAMES)
@example("x" * 300)
@example("ü" * 150)
def test_folder_name_is_one_plain_name_and_reads_back(name: str) -> None:
    encoded = folder_name(name)
    assert_is_a_good_folder(encoded)
    if "%~" not in encoded and name:
        assert unquote(encoded, errors="surrogatepass") == name


@given(NAMES, NAMES)
@example("\udcc3\udca9", "é")
@example("x" * 300, "x" * 301)
@example("x" * 300, "X" * 300)
def test_different_names_never_share_a_folder(one: str, other: str) -> None:
    assert (folder_name(one) == folder_name(other)) == (one == other)


@given(NAMES, NAMES)
@example("Cat", "cat")
@example("cat", "CAT")
@example("É", "é")
@example("a" * 180, "A" * 180)
@example("%~" + "a" * 32, "a")
def test_groups_never_share_a_folder_where_a_file_system_is_blind_to_case(one: str, other: str) -> None:
    for case in (other, one.swapcase(), one.upper()):
        folders = GroupFolders()
        names = {name: folders.of(name) for name in (one, case, None)}
        assert len({name.casefold() for name in names.values()}) == len(names)
        for group, name in names.items():
            assert_is_a_good_folder(name)
            assert folders.of(group) == name
            assert can_be_shard(shard_path(Unit("train", 3), name), Unit("train", 3), group)


def test_the_folders_names_follow_from_the_plan_whatever_is_written_first() -> None:
    groups = ["CAT", "Cat", None, "cat", "dog", "Dog.", "%"]
    first = alike(groups)
    assert first == ["CAT", "Cat", "cat"]
    in_order = GroupFolders(first)
    names = [in_order.of(group) for group in groups]
    assert names[0] == "CAT" and names[1].startswith("Cat%~") and names[3].startswith("cat%~")
    other_order = GroupFolders(first)
    assert [other_order.of(group) for group in reversed(groups)] == names[::-1]


def test_a_shard_of_other_bytes_has_a_name_of_its_own() -> None:
    path, sha256 = "train/cat/shard-00003.safetensors", "1f2e3d4c" + "0" * 56
    other = other_shard_path(path, sha256)
    assert other == "train/cat/shard-00003~1f2e3d4c.safetensors"
    assert can_be_shard(other, Unit("train", 3), "cat") and can_be_shard(other, Unit("train", 3), "cat", sha256)
    assert not can_be_shard(other, Unit("train", 3), "cat", "0" * 64)
    assert not can_be_shard(other, Unit("train", 3), "dog", sha256)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/x",
        "../train/shard-00003.safetensors",
        "train/../train/shard-00003.safetensors",
        "train/shard-3.safetensors",
        "train/shard-00003.safetensors",
        "train/shard-00003.safetensors/",
        "train//shard-00003.safetensors",
        "val/cat/shard-00003.safetensors",
        "train/cat/shard-00004.safetensors",
        "train/dog/shard-00003.safetensors",
        "train/cat/shard-00003.safetensors\0",
    ],
)
def test_a_shard_is_where_its_unit_and_group_say_or_nowhere(path: str) -> None:
    assert not can_be_shard(path, Unit("train", 3), "cat")
    assert can_be_shard("train/cat/shard-00003.safetensors", Unit("train", 3), "cat")


@pytest.mark.parametrize(("name", "expected"), [(None, "%none"), ("", "%empty")])
def test_no_group_and_an_empty_name_have_folders_of_their_own(name: str | None, expected: str) -> None:
    assert folder_name(name) == expected != folder_name(expected)


def test_paths_of_a_unit() -> None:
    unit = Unit("train", 7)
    assert index_path(unit) == "index/train-00007.parquet"
    assert shard_path(unit, None) == "train/shard-00007.safetensors"
    assert shard_path(unit, folder_name("a cat/2")) == "train/a cat%2F2/shard-00007.safetensors"


def test_index_files_come_in_order_of_unit(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    for name in ("b-00002", "b-100000", "a-00001-00003", "b-00010", "notes"):
        (tmp_path / "index" / f"{name}.parquet").touch()
    assert list(index_files(tmp_path)) == [("a-00001", 3), ("b", 2), ("b", 10), ("b", 100000)]
