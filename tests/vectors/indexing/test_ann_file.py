"""The files of an approximate index: by no link in a store, and with advice that helps."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import embedx
from embedx.api.store_verbs import index_by
from embedx.cli.app import run
from embedx.errors import ConfigError, StoreError
from embedx.vectors.indexing.ann_config import IndexConfig
from embedx.vectors.indexing.ann_file import FOLDER
from tests.store.builders import write_features

ROWS = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return written(tmp_path / "the store", 0)


def written(place: Path, seed: int) -> Path:
    rows = ROWS + seed
    return write_features(place, {"train": (rows[:200], [None] * 200), "val": (rows[200:], [None] * 100)})


def search(store: Path, **options: object) -> embedx.SearchResult:
    return embedx.search(store, rows="val:key-3", approximate=True, progress=False, **options)


def fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


def link(path: Path, other: Path) -> None:
    path.symlink_to(other)


@pytest.mark.parametrize(("make", "told"), [(fifo, "is not a regular file"), (link, "is a link, and links in a store")])
@pytest.mark.parametrize("kind", ["json", "faiss"])
def test_a_file_that_is_no_regular_one_is_refused(
    store: Path, tmp_path: Path, make: Callable[[Path, Path], None], told: str, kind: str
) -> None:
    index = index_by(store, IndexConfig(threads=1)).index
    path = {"json": store / FOLDER / "embeddings.json", "faiss": index.path}[kind]
    path.rename(tmp_path / "moved")
    make(path, tmp_path / "moved")
    with pytest.raises(StoreError, match=re.escape(f"{FOLDER}/{path.name} {told}")):
        search(store)


def test_a_folder_that_is_a_link_is_neither_read_nor_written(store: Path, tmp_path: Path) -> None:
    index_by(store, IndexConfig(threads=1))
    (store / FOLDER).rename(tmp_path / "elsewhere")
    (store / FOLDER).symlink_to(tmp_path / "elsewhere")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "elsewhere").iterdir()}
    with pytest.raises(StoreError, match=f"{FOLDER} is a link, and links in a store are not followed"):
        search(store)
    for overwrite in (False, True):
        with pytest.raises(StoreError, match=f"{FOLDER} is a link, and links in a store are not followed"):
            index_by(store, IndexConfig(threads=1, factory="IVF2,Flat", overwrite=overwrite))
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "elsewhere").iterdir()} == before
    assert search(store, index=tmp_path / "elsewhere").recall == 1  # which is named, and not a stranger's


def test_a_link_under_the_name_of_the_file_to_be_written_is_not_followed(store: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (store / FOLDER).mkdir()
    (store / FOLDER / f".embeddings.{os.getpid()}.part").symlink_to(tmp_path / "mine")
    assert index_by(store, IndexConfig(threads=1)).built and search(store).recall == 1
    assert (tmp_path / "mine").read_text() == "mine" and len(os.listdir(store / FOLDER)) == 2


@pytest.mark.parametrize(
    ("is_own", "splits", "settings"),
    [
        (True, (), {}),
        (True, ("val",), {"factory": "IVF3,Flat", "recall": 0.9, "seed": 4}),
        (False, (), {"factory": "IVF3,Flat"}),
        (False, ("val",), {}),
    ],
)
def test_the_command_that_is_advised_ends_the_refusal(
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_own: bool,
    splits: tuple[str, ...],
    settings: dict[str, object],
) -> None:
    """Where there is no index yet, and where the store has changed since it was built."""
    own = {} if is_own else {"index": tmp_path / "an index"}
    out = own.get("index")

    def advised() -> list[str]:
        with pytest.raises(ConfigError) as error:
            search(store, split=splits, **own)
        return shlex.split(str(error.value).split("`")[1])

    command = advised()
    assert "--overwrite" not in command
    monkeypatch.setattr("sys.argv", command)
    assert run() == 0 and search(store, split=splits, **own).recall is not None
    given = IndexConfig(out=out, split=splits, overwrite=True, **settings)
    before = index_by(store, given).index.facts
    changed = written(tmp_path / "changed", 1)
    if is_own:
        (store / FOLDER).rename(changed / FOLDER)  # as an update takes it along
    shutil.rmtree(store)
    changed.rename(store)
    command = advised()
    monkeypatch.setattr("sys.argv", command)
    assert run() == 0
    assert search(store, split=splits, **own).recall is not None
    again = index_by(store, dataclasses.replace(given, overwrite=False))
    assert not again.built and again.index.facts.recall_wanted == before.recall_wanted
