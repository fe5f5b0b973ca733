"""--include and --exclude; git says what a pattern matches."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from embedx.data.plan import build_plan
from embedx.data.sources import parse_data
from embedx.data.sources.kinds import SourceOptions
from embedx.data.sources.selection import listed
from embedx.errors import ConfigError
from tests.folders import touch

FILES = [
    "a.png", "b.jpg", "cat/a.png", "cat/b.jpg", "cat/deep/er/a.png", "cat/deep/thumb_1.jpg", "dog/a.png",
    "dog/cat/x.png", "dog/thumb_2.jpg", "labels/0.png", "dog/labels/1.png", "cats.png", "x[1].png",
    "dog/labels.png", "deep.png/0.png",
]  # fmt: skip
PATTERNS = [
    "*.png", "cat", "cat/", "/cat", "cat/*", "cat/*.png", "cat/**", "**/cat", "**/labels/*", "cat/**/a.png", "labels/",
    "thumb_?.jpg", "dog/*/", "/*.png", "[ab].png", "[!a].png", "x[[]1].png", "deep*", "cat*", "nothing", "*",
    "**", "*/a.png",
]  # fmt: skip


def keys(location: Path | str, **options: Any) -> list[str]:
    """The paths below the source of what is listed of it."""
    sources = parse_data([f"all={location}"], SourceOptions(**options))
    found: list[str] = sources["all"].scan()["key"].to_pylist()
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return touch(tmp_path_factory.mktemp("files"), *FILES)


def matched_by_git(root: Path, pattern: str) -> set[str]:
    """The files that git ignores by this pattern."""
    names = subprocess.run(
        ["git", "-c", f"core.excludesFile={root}.ignore", "check-ignore", "--no-index", "--stdin"],
        input="\n".join(FILES), capture_output=True, text=True, cwd=root,
        env={**os.environ, "GIT_DIR": f"{root}.git", "GIT_WORK_TREE": str(root)},
    ).stdout  # fmt: skip
    return set(names.splitlines())


@pytest.fixture(scope="module", autouse=True)
def repository(root: Path) -> None:
    subprocess.run(["git", "init", "-q", "--bare", f"{root}.git"], check=True)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_what_git_matches(root: Path, pattern: str) -> None:
    Path(f"{root}.ignore").write_text(pattern + "\n")
    right = matched_by_git(root, pattern)
    others = set(FILES) - right
    for options, expected in (({"include": (pattern,)}, right), ({"exclude": (pattern,)}, others)):
        if expected:
            assert set(keys(root, **options)) == expected
        else:
            with pytest.raises(ConfigError, match="no images in"):
                keys(root, **options)


def test_several_patterns_add_up_and_exclude_wins(root: Path) -> None:
    assert keys(root, include=("cat/", "*.jpg"), exclude=("deep", "b.*", "x*")) == ["cat/a.png", "dog/thumb_2.jpg"]


def test_endings_match_in_any_case_and_all_else_as_written(tmp_path: Path) -> None:
    touch(tmp_path, "a.JPG", "b.jpg", "c.Png", "Cat/d.png", "cat/e.png")
    assert keys(tmp_path, include=("*.jpg",)) == ["a.JPG", "b.jpg"]
    assert keys(tmp_path, exclude=("*.PNG",)) == ["a.JPG", "b.jpg"]
    assert keys(tmp_path, exclude=("cat",)) == ["Cat/d.png", "a.JPG", "b.jpg", "c.Png"]


def test_an_ending_that_is_asked_for_is_an_input_s(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.dat", "c.DAT", "d.txt")
    assert keys(tmp_path, include=("*.dat",)) == ["b.dat", "c.DAT"]
    assert keys(tmp_path, include=("*.dat", "a*")) == ["a.png", "b.dat", "c.DAT"]


def test_patterns_are_told_with_what_they_leave_out(root: Path) -> None:
    sources = parse_data([str(root)], SourceOptions(include=("*.png",), exclude=("labels", "cat/a.png")))
    (notice,) = build_plan(sources, None).notices
    assert notice == f"--data {root}: left out: 4 by --include, 1 by --exclude, the folder labels"


def test_an_excluded_folder_is_not_opened_and_is_no_split(tmp_path: Path) -> None:
    touch(tmp_path, "train/0.png", "val/0.png", "cat/0.png", "dog/0.png", "bird/0.png")
    assert list(parse_data([str(tmp_path)])) == ["all"]
    assert list(parse_data([str(tmp_path)], SourceOptions(exclude=("cat", "dog", "bird/")))) == ["train", "val"]
    sources = parse_data([str(tmp_path)], SourceOptions(include=("val/",)))
    assert list(sources) == ["val"] and sources["val"].scan()["key"].to_pylist() == ["0.png"]


def test_tars_take_samples_by_the_name_of_their_image(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ("cat/0.png", "cat/0.cls", "dog/1.jpg", "dog/1.cls", "dog/2.png", "dog/3.txt"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    tar = tmp_path / "x.tar"
    assert keys(tar, include=("*.png",)) == ["x.tar/cat/0", "x.tar/dog/2"]
    assert keys(tar, exclude=("dog",)) == ["x.tar/cat/0"]
    assert keys(tar, include=("dog/",)) == ["x.tar/dog/1", "x.tar/dog/2", "x.tar/dog/3"]


def test_patterns_are_for_folders_and_tars(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path\na.png\n")
    with pytest.raises(
        ConfigError, match="--exclude is for tars and images and folders, and no source is of that kind"
    ):
        parse_data([str(tmp_path / "t.csv")], SourceOptions(exclude=("x",)))


@pytest.mark.parametrize(
    ("names", "text"),
    [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c"), ("abcdef", "a, b, c, d, e and f"),
     ("abcdefgh", "a, b, c, d, e and 3 more"), (["a\nb\x1b"], r"a\nb\x1b")],
)  # fmt: skip
def test_names_are_told_in_one_line(names: list[str], text: str) -> None:
    assert listed(names) == text
