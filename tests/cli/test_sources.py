"""Folders as a user names them: the splits, what is said of them, and what an update brings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from embedx.store.reading.reader import Store
from tests.cli.calls import Embedx

PIXELS = ("--backbone", "tests.models.backbones.programs:pixels", "--image-size", "8", "--mean", "0,0,0",
          "--std", "1,1,1", "--batch-size", "4", "-j", "0")  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for number, name in enumerate(["Train/cat/0", "Train/dog/0", "Val/cat/0", "Val/dog/0", "labels/0", "__MACOSX/0"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / f"{name}.png")
    (root / "Train/cat/0.png").rename(root / "Train/cat/0")  # a name without an ending
    (root / "Val/cat/0.png").rename(root / "Val/cat/0.jpg")  # and one with another's
    (root / "Val/notes.txt").touch()
    return root


def keys(store: Path) -> dict[str, list[str]]:
    index = Store.open(store).index()
    rows = index.select(["split", "key"]).to_pylist()
    return {
        split: [row["key"] for row in rows if row["split"] == split] for split in index["split"].unique().to_pylist()
    }


@pytest.mark.usefixtures("one_thread")
def test_splits_are_read_from_names_and_it_is_said_once_a_run(embedx: Embedx, photos: Path) -> None:
    out = photos / "store"
    command = ("extract", *PIXELS, "--data", photos, "--out", out)
    notice = (
        f"--data {photos}: the splits are its folders Train and Val; all={photos} reads them as classes of one split; "
        "left out: 1 .txt, the folders __MACOSX and labels\n"
    )
    dry = embedx(*command, "--dry-run", "--json")
    assert list(json.loads(dry.stdout)["splits"]) == ["Train", "Val"] and dry.stderr.count(notice) == 1
    first = embedx(*command)
    assert (first.code, first.stdout) == (0, f"{out}/manifest.json\n") and first.stderr.count(notice) == 1
    assert keys(out) == {"Train": ["cat/0", "dog/0.png"], "Val": ["cat/0.jpg", "dog/0.png"]}
    assert Store.open(out).manifest.plan.classes == ("cat", "dog")
    again = embedx(*command)  # the store is below the source now
    assert "up to date: 4 rows" in again.stderr and again.stderr.count(notice) == 1
    assert embedx(*command, "--quiet").stderr == ""


@pytest.mark.usefixtures("one_thread")
def test_what_is_excluded_later_is_a_difference_that_an_update_brings_in(
    embedx: Embedx, photos: Path, tmp_path: Path
) -> None:
    command = ("extract", *PIXELS, "--data", photos, "--out", tmp_path / "store")
    assert embedx(*command).code == 0
    refused = embedx(*command, "--exclude", "dog/")
    assert refused.code == 2 and "2 gone" in refused.stderr
    updated = embedx(*command, "--exclude", "dog/", "--update", "--max-gone", "100%")
    assert updated.code == 0 and "2 gone" in updated.stderr and "the folders __MACOSX, dog and labels" in updated.stderr
    assert keys(tmp_path / "store") == {"Train": ["cat/0"], "Val": ["cat/0.jpg"]}


@pytest.mark.usefixtures("one_thread")
def test_sources_stand_without_their_flag_and_win_over_a_file_s(
    embedx: Embedx, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    Image.new("RGB", (8, 8)).save("-x.png")
    (tmp_path / "run.toml").write_text('data = ["nowhere"]\n')
    command = (
        "extract",
        *PIXELS,
        "--out",
        tmp_path / "store",
        "--config",
        tmp_path / "run.toml",
        "--data",
        "test=labels",
    )
    done = embedx(*command, "Val", "Train/dog/0.png", "--", "train=Train/cat", "-x.png")
    assert done.code == 0, done.stderr
    assert keys(tmp_path / "store") == {
        "test": ["0.png"],
        "all": ["cat/0.jpg", "dog/0.png", "Train/dog/0.png", "-x.png"],
        "train": ["0"],
    }
