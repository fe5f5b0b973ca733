from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from embedx.data.sources import parse_data
from embedx.data.sources.base import COMMON_SCHEMA
from embedx.errors import ConfigError
from tests.folders import folder_source, touch


def column(root: Path, name: str = "key") -> list[Any]:
    values: list[Any] = folder_source(root).scan()[name].to_pylist()
    return values


def faults(*specs: str | Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_data([str(spec) for spec in specs])
    return caught.value.faults


def test_images_are_found_at_every_depth_and_nothing_else(tmp_path: Path) -> None:
    touch(
        tmp_path, "a.jpg", "cat/b.PNG", "cat/deep/er/c.tiff", "cat/notes.txt", "list.csv", "jpg", "d.jpg.bak", "e.Jpeg"
    )
    assert column(tmp_path) == ["a.jpg", "cat/b.PNG", "cat/deep/er/c.tiff", "e.Jpeg"]


def test_the_table_has_the_common_columns_and_tells_where_and_what_each_file_is(tmp_path: Path) -> None:
    touch(tmp_path, "cat/one.jpg")
    table = folder_source(tmp_path).scan()
    status = (tmp_path / "cat/one.jpg").stat()
    assert table.schema.names == [*COMMON_SCHEMA.names, "target", "class", "parent"]
    assert table.to_pylist() == [
        {
            "key": "cat/one.jpg",
            "path": os.fsencode(tmp_path / "cat/one.jpg"),
            "offset": None,
            "size": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "target": "cat",
            "class": "cat",
            "parent": "cat",
        }
    ]


def test_class_is_the_first_folder_and_parent_all_of_them(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "cat/b.jpg", "cat/x/y/c.jpg")
    assert column(tmp_path, "class") == [None, "cat", "cat"]
    assert column(tmp_path, "parent") == [None, "cat", "cat/x/y"]


def test_the_order_is_the_same_however_the_files_came_about(tmp_path: Path) -> None:
    names = ["b/2.jpg", "a/1.jpg", "b/10.jpg", "B/1.jpg", "a/ä.jpg", "a/z.jpg", "0.jpg"]
    one, other = touch(tmp_path / "one", *names), touch(tmp_path / "other", *reversed(names))
    assert column(one) == column(other) == ["0.jpg", "B/1.jpg", "a/1.jpg", "a/z.jpg", "a/ä.jpg", "b/10.jpg", "b/2.jpg"]


def test_a_listing_in_many_pieces_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = touch(tmp_path, *(f"{folder}{number}.png" for folder in ("", "5/", "5/7/", "9/") for number in range(11)))
    whole = folder_source(root).scan()
    keys = whole["key"].to_pylist()
    assert len(keys) == 44 and keys == sorted(keys, key=lambda key: key.split("/"))
    for rows in (1, 2, 5):
        monkeypatch.setattr("embedx.data.sources.folder_files.CHUNK", rows)
        pieces = folder_source(root).scan()
        assert pieces.equals(whole) and pieces["key"].num_chunks > 1


def test_a_relative_root_gives_absolute_paths_and_the_same_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "in/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert column(Path("in")) == ["a.jpg"]
    assert column(Path("in"), "path") == [os.fsencode(tmp_path / "in/a.jpg")]


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", ".a.jpg", "._b.jpg", ".cache/c.jpg", "cat/.thumbs/d.jpg")
    assert column(tmp_path) == ["a.jpg"]


def test_no_follow_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    elsewhere = touch(tmp_path / "elsewhere", "a.jpg", "more/b.jpg")
    root = touch(tmp_path / "root", "c.jpg")
    (root / "linked").symlink_to(elsewhere)
    (root / "d.jpg").symlink_to(elsewhere / "a.jpg")
    assert column(root) == ["c.jpg", "d.jpg", "linked/a.jpg", "linked/more/b.jpg"]
    assert column(root, "size")[1] == len("a.jpg")


def test_no_follow_that_lead_back_are_survived(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "cat/b.jpg", "dog/c.jpg")
    (tmp_path / "cat/up").symlink_to(tmp_path)
    (tmp_path / "cat/dog").symlink_to(tmp_path / "dog")
    (tmp_path / "dog/cat").symlink_to(tmp_path / "cat")
    assert column(tmp_path) == ["a.jpg", "cat/b.jpg", "cat/dog/c.jpg", "dog/c.jpg", "dog/cat/b.jpg"]


def test_a_broken_link_is_listed_with_neither_size_nor_time(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (row,) = folder_source(tmp_path).scan().to_pylist()
    assert (row["key"], row["size"], row["mtime_ns"]) == ("gone.jpg", None, None)


@pytest.mark.parametrize("target", ["self.jpg", "a.jpg/below", "x" * 300])
def test_a_link_broken_in_another_way_is_listed_too(tmp_path: Path, target: str) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "self.jpg").symlink_to(target)
    assert column(tmp_path) == ["a.jpg", "self.jpg"]


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "x.jpg/a.jpg")
    (tmp_path / "empty.jpg").mkdir()
    assert column(tmp_path) == ["x.jpg/a.jpg"]
    assert column(tmp_path, "class") == ["x.jpg"]


def test_odd_names_are_kept_as_they_are(tmp_path: Path) -> None:
    names = [
        "'quoted' \"twice\".jpg",
        "new\nline.jpg",
        "tab\t, comma;.jpg",
        "{braces} [b] %41 %.jpg",
        "😀/ñ.jpg",
        "=.jpg",
    ]
    touch(tmp_path, *names)
    assert sorted(column(tmp_path)) == sorted(names)
    assert {os.fsdecode(path) for path in column(tmp_path, "path")} == {str(tmp_path / name) for name in names}


def test_names_that_are_not_utf8_become_readable_keys_and_keep_their_path(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/\xff.jpg", "wb"):
        pass
    (row,) = folder_source(tmp_path).scan().to_pylist()
    assert row["key"] == r"caf\xe9/\xff.jpg"
    assert row["class"] == r"caf\xe9"
    assert row["path"] == folder + b"/\xff.jpg"


def test_a_folder_without_images_is_a_fault_that_says_what_was_looked_for(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", ".hidden.jpg")
    with pytest.raises(ConfigError, match=r"no images in .*\.jpg .*\.png") as caught:
        folder_source(tmp_path).scan()
    assert str(tmp_path) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_a_folder_that_can_not_be_listed_is_a_fault(tmp_path: Path) -> None:
    touch(tmp_path, "locked/a.jpg").joinpath("locked").chmod(0)
    try:
        with pytest.raises(ConfigError, match=r"locked: can't be listed \(Permission denied\)"):
            folder_source(tmp_path).scan()
    finally:
        (tmp_path / "locked").chmod(0o700)


def test_a_folder_without_a_name_is_the_split_all(tmp_path: Path) -> None:
    touch(tmp_path, "cat/a.jpg", "dog/b.jpg")
    assert list(parse_data([str(tmp_path)])) == ["all"]


def test_sub_folders_named_as_splits_are_the_splits(tmp_path: Path) -> None:
    touch(tmp_path, "val/cat/a.jpg", "train/cat/b.jpg", "README.md", ".git/c.jpg")
    sources = parse_data([str(tmp_path)])
    assert list(sources) == ["train", "val"]
    assert sources["val"].scan()["key"].to_pylist() == ["cat/a.jpg"]
    assert sources["val"].scan()["class"].to_pylist() == ["cat"]


def test_a_name_makes_one_split_of_a_folder_whatever_its_sub_folders(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.jpg", "val/b.jpg")
    sources = parse_data([f"mine={tmp_path}"])
    assert list(sources) == ["mine"]
    assert sources["mine"].scan()["key"].to_pylist() == ["train/a.jpg", "val/b.jpg"]


def test_splits_keep_the_order_in_which_they_are_given(tmp_path: Path) -> None:
    touch(tmp_path, "a/a.jpg", "b/b.jpg")
    assert list(parse_data([f"z={tmp_path / 'a'}", f"b={tmp_path / 'b'}"])) == ["z", "b"]


def test_a_folder_with_an_equals_sign_in_its_name_is_not_taken_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "lr=0.1/a.jpg")
    assert list(parse_data([str(tmp_path / "lr=0.1")])) == ["all"]
    assert list(parse_data([f"x={tmp_path / 'lr=0.1'}"])) == ["x"]
    monkeypatch.chdir(tmp_path)
    assert list(parse_data(["lr=0.1"])) == ["all"]


def test_a_missing_folder_names_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    (fault,) = faults(tmp_path / "photogaphs")
    assert f"no folder {tmp_path / 'photogaphs'}" in fault
    assert f"did you mean {tmp_path / 'photographs'}?" in fault
    (fault,) = faults(f"n={tmp_path / 'q'}")
    assert "give a folder of images, or NAME=FOLDER" in fault


@pytest.mark.parametrize("name", ["index", "INDEX", "Index", "manifest.json", "", "\udcff"])
def test_names_that_the_store_needs_are_no_splits(tmp_path: Path, name: str) -> None:
    (fault,) = faults(f"{name}={tmp_path}")
    assert f"can't be named {name!r}" in fault


def test_splits_that_differ_in_case_alone_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg")
    (fault,) = faults(f"Val={tmp_path / 'a'}", f"val={tmp_path / 'a'}")
    assert "the splits 'Val' and 'val' differ in case alone" in fault


def test_every_fault_is_reported_at_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/2.jpg", "file.txt")
    found = faults(
        f"x={tmp_path / 'a'}",
        f"X={tmp_path / 'b'}",
        f"index={tmp_path / 'b'}",
        tmp_path / "missing",
        tmp_path / "file.txt",
    )
    assert len(found) == 4
    assert "'x' and 'X' differ in case alone" in found[0]
    assert "'index'" in found[1]
    assert "no folder" in found[2]
    assert "a file that is none of images, tables" in found[3]


@pytest.mark.parametrize("spec", ["x" * 300, "n=" + "x" * 300])
def test_a_name_too_long_for_the_file_system_is_a_fault_like_others(spec: str) -> None:
    (fault,) = faults(spec)
    assert "no folder" in fault
