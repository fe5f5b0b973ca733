"""`embedx duplicates` as a user types it: streams, exit codes, messages, files; and copies of photographs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest
import torch
from PIL import Image

from embedx.store.format.layout import MANIFEST
from embedx.store.format.manifest import Manifest
from tests.cli.calls import Embedx
from tests.disks import fill, small_disk
from tests.store.builders import write_features

KEYS = ["plain.jpg", '[red]é,"x"\x1b[2J\n.jpg', "<img onerror=alert(1)>", "=1+1", "x" * 300]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five rows of train, each of which val has too, twice as long; the last one with the same bytes."""
    rows = torch.eye(5)
    sums = [f"{row:064}" for row in range(5)]
    more: dict[str, dict[str, Sequence[Any]]] = {
        "train": {"key": KEYS, "path": KEYS, "sha256": sums, "bytes": [5] * 5},
        "val": {"key": KEYS[::-1], "path": KEYS[::-1], "sha256": [sums[4], *[None] * 4], "bytes": [9] * 5},
    }
    splits = {"train": (rows, [0] * 5), "val": (2 * rows.flip(0), [0] * 5), "other": (-torch.eye(5), [0] * 5)}
    return write_features(tmp_path_factory.mktemp("stores") / "store", splits, more=more)


def test_tables_are_on_stdout_and_talk_stays_on_stderr(call: Embedx, store: Path) -> None:
    code, stdout, stderr = call("duplicates", store)
    assert code == 0 and "duplicates      5 rows in 5 groups" in stdout and "of equal bytes  1 row" in stdout
    assert "│ train │ 5    │ 0     │ 5   │ 0     │" in stdout and "│ other │ 5    │ 0     │ 0   │ 0     │" in stdout
    assert "│ below 0.5     │ 5    │ ███████████████                │" in stdout
    assert "│ 0.999 to 1    │ 10   │ ██████████████████████████████ │ 10 (66.7%) │" in stdout
    assert "│       │ 1.0000     │ val   │ plain.jpg" in stdout and "│       │ equal      │ val   │ xxxx" in stdout
    assert "[red]é" in stdout and "\x1b" not in stdout and "--out FILE lists all rows" in stderr
    assert call("duplicates", store, "--quiet")[2] == ""


def test_json_is_one_object_in_one_line(call: Embedx, store: Path) -> None:
    code, stdout, _ = call("duplicates", store, "--json", "--between", "train", "val")
    result = json.loads(stdout)
    assert code == 0 and stdout.count("\n") == 1 and (result["groups"], result["members"], result["equal"]) == (5, 5, 1)
    assert result["pairs_of_splits"][0] == {
        "of": {"split": "train"},
        "in": {"split": "val"},
        "rows": 5,
        "is_leak": True,
    }
    assert result["at_thresholds"][-1] == {"threshold": 0.999, "rows": 10}


def test_leaks_end_with_3_after_all_is_printed(call: Embedx, store: Path, tmp_path: Path) -> None:
    code, stdout, stderr = call("duplicates", store, "--fail-on-leak", "--out", tmp_path / "x.csv")
    assert code == 3 and "5 groups" in stdout and (tmp_path / "x.csv").exists()
    assert "there are duplicates of 5 rows of train in val; of 5 rows of val in train; take them out" in stderr
    assert call("duplicates", store, "--fail-on-leak", "--between", "train", "other")[0] == 0
    assert call("duplicates", store, "--fail-on-leak", "--split", "train", "--split", "other")[0] == 0
    code, _, stderr = call("duplicates", store, "--fail-on-leak", "--split", "train")
    assert code == 2 and "there is one split alone, 'train'" in stderr
    assert call("duplicates", store, store, "--fail-on-leak", "--split", "train")[0] == 3


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_files_are_read_by_pandas_and_duckdb(call: Embedx, store: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"duplicates.{suffix}"
    code, stdout, stderr = call("duplicates", store, "--out", out, "--keep", "largest", "--json")
    assert code == 0 and json.loads(stdout)["out"] == str(out) and "--out FILE" not in stderr
    read = {"parquet": pd.read_parquet, "csv": pd.read_csv, "jsonl": lambda path: pd.read_json(path, lines=True)}
    frame = read[suffix](out)
    assert list(frame) == ["group", "representative", "key", "split", "similarity", "equal", "keep", "path"]
    assert frame["key"].tolist() == frame["representative"].tolist() == [key for key in KEYS for _ in range(2)]
    assert frame["split"].tolist() == ["train", "val"] * 5 and frame["similarity"].tolist() == [1.0] * 10
    assert frame["equal"].tolist() == [*[True, False] * 4, True, True] and frame["keep"].tolist() == [False, True] * 5
    with duckdb.connect() as connection:
        found = connection.execute(f"select distinct key from '{out}' where keep and similarity >= 1 order by key")
        assert [key for (key,) in found.fetchall()] == sorted(KEYS)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_file_is_replaced_only_if_that_is_wanted(call: Embedx, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "duplicates.csv"
    out.write_text("mine")
    code, stdout, stderr = call("duplicates", store, "--out", out)
    assert (code, stdout, out.read_text()) == (2, "", "mine") and "is there already" in stderr
    assert call("duplicates", store, "--out", out, "--overwrite")[0] == 0
    first = out.read_bytes()
    assert first.startswith(b'"group"') and call("duplicates", store, "--out", out, "--overwrite")[0] == 0
    assert out.read_bytes() == first


def test_a_full_disk_leaves_no_file(call: Embedx, store: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        fill(disk)
        code, stdout, stderr = call("duplicates", store, "--out", disk / "duplicates.parquet")
        assert (code, stdout) == (1, "") and "No space left on device" in stderr and stderr.count("error:") == 1
        assert [path.name for path in disk.iterdir()] == ["ballast"]


def test_the_reader_of_stdout_may_go(store: Path) -> None:
    command = f"{sys.executable} -m embedx duplicates {store} --quiet | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert " store " in done.stdout and done.stderr == ""


def test_settings_can_stand_in_a_file_and_flags_win(call: Embedx, store: Path, tmp_path: Path) -> None:
    (tmp_path / "duplicates.toml").write_text('between = ["train", "other"]\nthreshold = 0.5\ndevice = "cpu"\n')
    settings = ("--config", tmp_path / "duplicates.toml", "--json")
    result = json.loads(call("duplicates", store, *settings, "--threshold", "0.9")[1])
    assert (result["between"], result["threshold"], result["members"]) == (["train", "other"], 0.9, 0)


def test_an_unfinished_store_is_looked_through_with_a_notice(call: Embedx, store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "store")
    assert json.loads((store / MANIFEST).read_text())["complete"]
    begun = Manifest.read(store)
    Manifest(begun.recipe, begun.plan, begun.environment).write(tmp_path / "store")
    code, _, stderr = call("duplicates", tmp_path / "store")
    assert code == 0 and "is not complete: the rows committed so far are compared" in stderr


def test_stores_of_other_recipes(call: Embedx, store: Path, tmp_path: Path) -> None:
    other = write_features(tmp_path / "other", {"train": (torch.eye(5), [0] * 5)})
    for name, value, code in (("weights", {"sha256": "f" * 64}, 2), ("batch_size", 7, 0)):
        recipe = Manifest.read(other).recipe.replacing(**{name: value})
        changed = tmp_path / name
        shutil.copytree(other, changed)
        began = Manifest.read(changed)
        Manifest(recipe, began.plan, began.environment).write(changed)
        found, _, stderr = call("duplicates", store, changed)
        told = "have other recipes" if code else "recipes of the stores differ a little"
        assert found == code and told in stderr and name in stderr, stderr


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (("--between", "train", "vall"), 2, "unknown split 'vall'; did you mean val?"),
        (("--between", "val", "val"), 2, "--between names 'val' twice"),
        (("--between", "train", "val", "--split", "val"), 2, "--between names the splits already"),
        (("--split", "tset"), 2, "unknown split 'tset'"),
        (("--threshold", "1.5"), 2, "--threshold is 1.5; give a number above 0 and up to 1"),
        (("--threshold", "nan"), 2, "--threshold is nan"),
        (("--threshold", "-1"), 2, "--threshold is -1"),
        (("--where", "groop = 'x'"), 2, "groop"),
        (("--where", "key ="), 2, "--where key ="),
        (("--where", "key = 'nothing'"), 2, "no rows where key = 'nothing'"),
        (("--name", "layer4"), 2, "unknown tensor 'layer4'"),
        (("--keep", "last"), 2, "last"),
        (("--device", "tpu"), 2, "--device 'tpu'"),
        (("--out", "x.txt"), 2, "--out x.txt: give a name that ends in .parquet, .csv or .jsonl"),
        (("--out", "nowhere/x.csv"), 2, "there is no folder nowhere"),
        (("nothing",), 2, "nothing is not a store"),
    ],
)
def test_what_can_not_be_done_is_one_message(
    call: Embedx, store: Path, options: tuple[str, ...], code: int, told: str
) -> None:
    found, stdout, stderr = call("duplicates", store, "--quiet", *options)
    assert (found, stdout) == (code, "") and told in stderr and "fault of embedx itself" not in stderr
    assert stderr.count("error:") == 1


def test_nothing_is_written_into_a_store(call: Embedx, store: Path) -> None:
    code, _, stderr = call("duplicates", store, "--out", store / "index" / "train-00009.parquet")
    assert (
        code == 2
        and f"is in the store {store}; choose a path outside of it" in stderr
        and not (store / "index" / "train-00009.parquet").exists()
    )


PHOTOS = ("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "rocket.jpg")
KINDS = ("copy.png", "q95.jpg", "q75.jpg", "q50.jpg", "q30.jpg", "x0.5.png", "x0.75.png", "x1.5.png")


def test_copies_of_photographs_are_found_in_another_split(call: Embedx, photos: Path, tmp_path: Path) -> None:
    """By the bundled weights, which have seen no photograph, at 0.99: precision of at least 0.95, recall 0.85."""
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    for name in PHOTOS:
        image, stem = Image.open(photos / name).convert("RGB"), name.partition(".")[0]
        image.thumbnail((384, 384))
        image.save(tmp_path / "train" / f"{stem}.png")
        for kind in KINDS:
            copy = tmp_path / "val" / f"{stem}.{kind}"
            amount = float(kind[1:].rpartition(".")[0]) if kind[0] in "qx" else 0
            if kind[0] == "q":
                image.save(copy, quality=int(amount))
            elif kind[0] == "x":
                image.resize((round(image.width * amount), round(image.height * amount))).save(copy)
            else:
                shutil.copy(tmp_path / "train" / f"{stem}.png", copy)
    store = tmp_path / "store"
    data = [f"--data={split}={tmp_path / split}" for split in ("train", "val")]
    weights = ("--backbone", "shufflenet_v2_x0_5", "--weights", "sample", "--runtime", "eager", "--workers", "0")
    assert call("extract", *data, *weights, "--batch-size", "8", "--out", store, "--quiet")[0] == 0
    out = tmp_path / "duplicates.parquet"
    options = ("--between", "train", "val", "--fail-on-leak", "--threshold", "0.99", "--quiet")
    assert call("duplicates", store, "--out", out, *options)[0] == 3
    members = pd.read_parquet(out).query("split == 'val'")
    right = members["key"].str.partition(".")[0] == members["representative"].str.partition(".")[0]
    assert right.mean() >= 0.95 and right.sum() / (len(PHOTOS) * len(KINDS)) >= 0.85
    is_copy = members["key"].str.endswith(".copy.png")
    assert is_copy.sum() == len(PHOTOS) and (members["equal"] == is_copy).all()
