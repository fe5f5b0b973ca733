"""Stores of format 1 by earlier versions: this one reads, verifies, completes and updates them.

`golden/unsealed` was written before index tables had seals and shards the digest of their inputs, `golden/sealed`
before the first release. Both are of `golden/images`, by the settings below, and are never written again.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from embedx import ExtractConfig
from embedx.run.extract import extract
from embedx.store.reading.reader import Store
from embedx.store.reading.verify import verify
from tests.runs import digests

GOLDEN = Path(__file__).parent / "golden"
NEW = "disc/new.jpg"

Rows = dict[str, bytes]
"""The bits of each row's embedding, by key."""


def settings(root: Path, out: Path) -> ExtractConfig:
    return ExtractConfig(
        data=(f"train={root / 'train'}", f"val={root / 'val'}"),
        backbone="shufflenet_v2_x0_5",
        weights="sample",
        out=out,
        device="cpu",
        runtime="eager",
        dtype="float16",
        image_size=64,
        batch_size=8,
        workers=0,
        group_key="class",
        shard_size=8192,
        max_errors=1,
    )


def images(root: Path) -> Path:
    """A copy of the images of both stores."""
    return shutil.copytree(GOLDEN / "images", root / "images", ignore=shutil.ignore_patterns("new.jpg"))


def add_image(root: Path) -> None:
    shutil.copy(GOLDEN / "images/new.jpg", root / "train" / NEW)


def stored(out: Path, split: str) -> Rows:
    """The rows of a split, as pyarrow and safetensors read them."""
    table = pq.read_table(out / f"index/{split}-00000.parquet").filter(pc.field("status") == "ok")
    shards = {name: load_file(out / name)["embeddings"] for name in table["shard"].unique().to_pylist()}
    places = zip(table["key"].to_pylist(), table["shard"].to_pylist(), table["row"].to_pylist(), strict=True)
    return {key: shards[shard][row].tobytes() for key, shard, row in places}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    """The rows of the images and the new one, computed by this version on this machine."""
    root = images(tmp_path_factory.mktemp("fresh"))
    add_image(root)
    extract(settings(root, root.parent / "store"))
    return {split: stored(root.parent / "store", split) for split in ("train", "val")}


@pytest.fixture(params=["unsealed", "sealed"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> ExtractConfig:
    """The settings of a copied store."""
    store = shutil.copytree(GOLDEN / request.param, tmp_path / "store")
    assert (b"embedx.seal" in (store / "index/train-00000.parquet").read_bytes()) == (request.param == "sealed")
    return settings(images(tmp_path), store)


def test_it_is_read_and_verified(config: ExtractConfig, fresh: dict[str, Rows]) -> None:
    assert list(verify(config.out)) == []
    train, val = (Store.open(config.out).load(split) for split in ("train", "val"))
    assert train.keys == [f"disc/disc_0{n}.jpg" for n in (0, 1)] + [f"ring/ring_0{n}.jpg" for n in (1, 2, 3)]
    assert val.keys == ["disc/disc_00.jpg", "ring/ring_00.jpg"]
    for split, rows in (("train", train), ("val", val)):
        bits = [row.tobytes() for row in rows.embeddings]
        assert dict(zip(rows.keys, bits, strict=True)) == stored(config.out, split)
        now = np.stack([np.frombuffer(fresh[split][key], np.float16) for key in rows.keys])
        np.testing.assert_allclose(rows.embeddings, now, rtol=0.02, atol=0.002)


def test_a_rerun_computes_nothing(config: ExtractConfig) -> None:
    before = digests(config.out)
    assert extract(config).up_to_date
    changed = {name for name, digest in digests(config.out).items() if before.get(name) != digest}
    assert changed <= {"manifest.json", ".embedx.lock"}


def test_a_unit_that_is_missing_is_computed(config: ExtractConfig, fresh: dict[str, Rows]) -> None:
    before = stored(config.out, "train")
    (config.out / "index/val-00000.parquet").unlink()
    extract(config)
    assert list(verify(config.out)) == [] and stored(config.out, "train") == before
    assert stored(config.out, "val") == fresh["val"]


def test_an_update_computes_the_new_image_alone(config: ExtractConfig, fresh: dict[str, Rows]) -> None:
    before = {split: stored(config.out, split) for split in ("train", "val")}
    add_image(config.out.parent / "images")
    extract(dataclasses.replace(config, update=True))
    assert list(verify(config.out)) == [] and stored(config.out, "val") == before["val"]
    assert stored(config.out, "train") == {**before["train"], NEW: fresh["train"][NEW]}
