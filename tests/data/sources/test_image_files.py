"""Images named one by one; bash's own expansion, Pillow and os.stat say what is right."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from embedx.data.plan import Plan, build_plan
from embedx.data.sources import parse_data
from embedx.data.sources.kinds import SourceOptions
from embedx.errors import ConfigError
from tests.folders import touch

FILES = ("a.jpg", "more/0.png", "more/1.JPG", "more/deep/2.tif", "more/x [1].jpg", "other/0.gif", "-dash.png")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name, "PNG")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listed(*specs: str, **options: Any) -> Plan:
    return build_plan(parse_data(specs, SourceOptions(**options)), None)


def keys(*specs: str, split: str = "all", **options: Any) -> list[str]:
    plan = listed(*specs, **options)
    assert list(plan.splits) == [split]
    found: list[str] = plan.splits[split].table["key"].to_pylist()
    return found


@pytest.mark.parametrize(
    "pattern",
    ["more/*", "more/*.png", "*/0.png", "*", "{a,more/0}.*", "more/[01].*", "more/?.???", "./more/*.png", "a.jpg"],
)
def test_a_quoted_pattern_is_what_a_shell_makes_of_it(here: Path, pattern: str) -> None:
    shell = subprocess.run(["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True)
    names = [name for name in shell.stdout.splitlines() if os.path.isfile(name)]
    assert [key for key in keys(pattern) if os.path.isfile(key)] == names
    assert keys(*names) == names


def test_images_have_the_place_and_parent_that_they_were_given_with(here: Path) -> None:
    (split,) = listed("more/0.png", str(here / "a.jpg"), "a.jpg", "more/deep/2.tif").splits.values()
    rows = split.table.to_pylist()
    assert [row["key"] for row in rows] == ["more/0.png", str(here / "a.jpg"), "a.jpg", "more/deep/2.tif"]
    assert [row["parent"] for row in rows] == ["more", str(here), None, "more/deep"]
    for row in rows:
        status = os.stat(here / row["key"])
        assert os.fsdecode(row["path"]) == str(here / row["key"])
        assert (row["size"], row["mtime_ns"], row["target"]) == (status.st_size, status.st_mtime_ns, None)


def test_images_of_several_names_are_several_splits_and_folders_join_in(here: Path) -> None:
    plan = listed("train=a.jpg", "val=more/0.png", "train=more/1.JPG", "val=more/*.jpg", "val=other")
    assert {name: split.table["key"].to_pylist() for name, split in plan.splits.items()} == {
        "train": ["a.jpg", "more/1.JPG"],
        "val": ["more/0.png", "more/x [1].jpg", "0.gif"],
    }
    assert keys("other/", "a.jpg", "more/0.png") == ["0.gif", "a.jpg", "more/0.png"]


def test_ten_thousand_named_images_are_one_listing(here: Path) -> None:
    names = [f"many/{number:05d}.png" for number in range(10_000)]
    touch(here, *names)
    assert keys(*names) == names


def test_two_stars_find_each_file_once(here: Path) -> None:
    assert keys("more/**") == ["more/0.png", "more/1.JPG", "more/deep/2.tif", "more/x [1].jpg"]


def test_what_is_named_and_no_image_is_left_out_and_told(here: Path) -> None:
    touch(here, "more/notes.md", "more/labels.csv")
    Image.new("RGB", (4, 4)).save(here / "more/photo.jpg_large", "JPEG")
    plan = listed("more/*")
    assert plan.notices == ("--data more/0.png … more/x [1].jpg: left out: 1 .csv, 1 .md",)
    assert "more/photo.jpg_large" in plan.splits["all"].table["key"].to_pylist()
    assert keys("more/*.*", include=("*.png",), exclude=("deep",)) == ["more/0.png"]
    with pytest.raises(ConfigError, match=r"--data more/notes.md: a file that is none of images, tables such as"):
        listed("more/notes.md")


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["gone.jpg"], "--data gone.jpg: there is no such file"),
        (["a.jpg", "none/*.jpg"], r"--data none/\*.jpg: there is no such file"),
        (["a.jpg", "more/0.png", "a.jpg"], "1 keys? occurs? more than once, such as 'a.jpg'.*; name each file once"),
    ],
)
def test_a_file_that_is_not_there_or_there_twice_is_named(here: Path, specs: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        listed(*specs)
