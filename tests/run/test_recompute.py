"""Rows computed once more from their inputs, by which a number is found that no checksum tells from a good one."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import csv, parquet
from rich.console import Console
from safetensors.torch import load_file

import embedx
from embedx import ExtractConfig, sample
from embedx.errors import ConfigError, StoreMismatchError
from embedx.run.extract import extract
from embedx.run.recompute import TOLERANCE_BY_DTYPE, TOLERANCE_BY_PRECISION, recompute
from embedx.run.row_checker import Recomputation
from embedx.store.format.index import read_entry, read_index, write_index
from embedx.store.format.manifest import Manifest
from embedx.store.format.shards import encode_shard, open_shard, read_header
from embedx.store.reading.verify import verify
from tests.runs import written
from tests.store.builders import build_store

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = """
from pathlib import Path
from torch import nn

Path(__file__).with_name("has-run").touch()

def build(width=8):
    model = nn.Sequential(nn.Conv2d(3, width, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.preprocessing = {"resize": 72, "crop": 64, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}
    return model
"""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which extract is called: photos of three classes, and code for a backbone that is quickly made."""
    folder = tmp_path / "workplace"
    for source in sorted((sample.IMAGES / "val").iterdir())[:3]:
        (folder / "photos" / source.name).mkdir(parents=True)
        for image in sorted(source.iterdir())[:3]:
            shutil.copy(image, folder / "photos" / source.name)
    (folder / "tiny_backbone.py").write_text(TINY)
    monkeypatch.chdir(folder)
    yield folder
    sys.modules.pop("tiny_backbone", None)


def made(**settings: Any) -> Path:
    """A store of the tiny backbone's, with two units per split and more."""
    defaults: dict[str, Any] = {
        "backbone": "tiny_backbone:build",
        "data": ("photos",),
        "batch_size": 4,
        "workers": 0,
        "shard_size": 1,
    }
    out = Path("store").absolute()
    extract(ExtractConfig(**defaults | {"out": out} | settings))
    return out


def judged(store: Path, count: int = 1000, **options: Any) -> Recomputation:
    return recompute(store, count, **{"seed": 1, "trust": True} | options)


def falsify(store: Path, key: str, name: str, change: float) -> None:
    """Changes one number of a row, and makes all checksums right again, as a stranger would, or a broken machine."""
    manifest = Manifest.read(store)
    for relative in manifest.index:
        rows, entry = read_index(store / relative), read_entry(store / relative)
        for row in rows.to_pylist():
            if row["key"] == key:
                tensors = load_file(store / row["shard"])
                tensors[name][row["row"]].view(-1)[1] += change
                with open_shard(store / row["shard"]) as shard:
                    header = read_header(shard)
                written, parts = encode_shard(row["shard"], tensors, header)
                (store / row["shard"]).write_bytes(b"".join(parts))
                shards = tuple(written if one.path == row["shard"] else one for one in entry.shards)
                write_index(store, rows, entry._replace(shards=shards))
                break
    index = {relative: hashlib.sha256((store / relative).read_bytes()).hexdigest() for relative in manifest.index}
    dataclasses.replace(manifest, index=index).write(store)
    assert list(verify(store)) == []


def test_a_good_store_is_what_its_inputs_give_to_the_bit(workplace: Path) -> None:
    """Two splits, groups, layers, half precision, and an input that is rejected and so never chosen."""
    (workplace / "photos" / "cross" / "broken.jpg").write_text("no image")
    data = ("train=photos", "val=photos/crescent")
    settings: dict[str, Any] = {
        "backbone": sample.BACKBONE,
        "weights": "sample",
        "layer": ("stage3",),
        "dtype": "float16",
    }
    store = made(data=data, group_key="parent", **settings)
    total = sum(len(embedx.open(store).load(split)) for split in ("train", "val"))
    assert total == 9 + 3 and len(embedx.open(store).index()) == total + 1
    assert judged(store, trust=False) == Recomputation(1, "cpu", total, 0.0, TOLERANCE_BY_DTYPE["float16"], [], [])
    assert judged(store, 5, trust=False).rows == 5


@pytest.mark.parametrize("name", ["embeddings", "0"])
def test_a_number_that_no_checksum_tells_is_found_and_named(workplace: Path, name: str) -> None:
    store = made(layer=("0",))
    key = "crescent/" + sorted(path.name for path in Path("photos/crescent").iterdir())[1]
    largest = embedx.open(store).load("all", name=name)
    largest = np.abs(largest.embeddings[largest.keys.index(key)]).max()
    falsify(store, key, name, 2e-4 * largest)
    found = judged(store)
    assert found.rows == 9 and found.lost_inputs == [] and len(found.faults) == 1
    assert f"split 'all', key '{key}': '{name}', row " in found.faults[0] and "(allowed 0.0001)" in found.faults[0]
    assert found.largest_difference == pytest.approx(2e-4, rel=0.01)


def test_what_differs_by_rounding_alone_is_allowed(workplace: Path) -> None:
    store = made()
    image = sorted(Path("photos").rglob("*.*"))[0]
    falsify(store, str(image.relative_to("photos")), "embeddings", 1e-6)
    found = judged(store)
    assert found.faults == [] and found.allowed == TOLERANCE_BY_PRECISION["fp32"]
    assert found.largest_difference is not None and 0 < found.largest_difference < found.allowed
    assert len(judged(store, tolerance=found.largest_difference / 2).faults) == 1


@pytest.mark.soak
def test_inputs_that_are_gone_or_have_changed_are_no_wrong_rows(workplace: Path) -> None:
    store = made()
    gone, changed, rewritten = sorted(Path("photos").rglob("*.*"))[::3]
    gone.unlink()
    sizes = changed.stat().st_size, changed.stat().st_size + 1
    changed.write_bytes(changed.read_bytes() + b"\0")
    rewritten.write_bytes(bytes([*rewritten.read_bytes()[:-1], 7]))
    found = judged(store)
    assert (found.rows, found.faults, found.largest_difference) == (6, [], 0.0)
    keys = [str(path.relative_to("photos")) for path in (gone, changed, rewritten)]
    assert found.lost_inputs == [
        f"split 'all', key '{keys[0]}': its input can't be read any more (can't be read: No such file or directory)",
        f"split 'all', key '{keys[1]}': its input has changed since ({sizes[0]} bytes then, {sizes[1]} now, another "
        "sha256)",
        f"split 'all', key '{keys[2]}': its input has changed since ({rewritten.stat().st_size} bytes, another sha256)",
    ]
    shutil.rmtree("photos")
    found = judged(store)
    assert (found.rows, found.faults, len(found.lost_inputs)) == (0, [], 9)


def test_the_seed_chooses_the_rows(workplace: Path) -> None:
    store = made()
    for image in images():
        image.write_bytes(b"another")  # each row that is chosen is named then
    one, again, other = (judged(store, 4, seed=seed).lost_inputs for seed in (3, 3, 4))
    assert len(one) == 4 and one == again != other
    console = Console(file=io.StringIO(), width=200)
    found = [judged(store, 4, seed=None, console=console) for _ in range(2)]
    assert found[0].seed != found[1].seed
    assert f"rows to recompute: 4, chosen by --seed {found[1].seed}, on cpu" in written(console)


def images() -> list[Path]:
    return sorted(path for path in Path("photos").rglob("*.*"))


def as_tars(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    for number in range(2):
        with tarfile.open(f"shard-{number}.tar", "w") as archive:
            for image in images()[number::2]:
                archive.add(image)
    return {"data": ("train=shard-{0..1}.tar",)}


def as_paths_on_stdin(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(map(str, images())).encode())))
    return {"data": ("-",)}


def as_names_that_are_no_text(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    Path("names").mkdir()
    for number, image in enumerate(images()):
        name = b"%d" % number + (b"\xff" if number % 2 else rb"\xff") + b".jpg"
        shutil.copy(image, Path("names", os.fsdecode(name)))
    return {"data": ("names",)}


def as_embedded_images(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    rows = [{"bytes": image.read_bytes(), "path": None} for image in images()[:-1]]
    Path("elsewhere").mkdir()
    shutil.copy(images()[-1], "elsewhere/last.jpg")
    splits = ["train" if row % 2 else "val" for row in range(9)]
    table = pa.table({"picture": [*rows, {"bytes": None, "path": "last.jpg"}], "part": splits})
    parquet.write_table(table, "images.parquet", row_group_size=4)
    return {
        "data": ("images.parquet",), "path_column": "picture", "split_column": "part", "root": "elsewhere"
    }  # fmt: skip


def as_a_table(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    names = [str(image.relative_to("photos")) for image in images()]
    csv.write_csv(pa.table({"file": names}), "images.csv")
    return {"data": ("images.csv",), "root": "photos"}


def as_a_dataset(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"data": ("test=torchvision:ImageFolder?root=photos",)}


def as_rows_of_features(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    np.save("features.npy", np.random.default_rng(1).standard_normal((9, 5, 3), dtype=np.float32))
    return {"data": ("features.npy",), "backbone": "none", "pool": "max", "normalize": True}


SOURCES = [
    *(as_tars, as_paths_on_stdin, as_names_that_are_no_text, as_embedded_images, as_a_table, as_a_dataset),
    as_rows_of_features,
]


@pytest.mark.parametrize("source", SOURCES)
def test_every_kind_of_source_is_read_again_from_where_the_run_began(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    source: Callable[[pytest.MonkeyPatch], dict[str, Any]],
) -> None:
    store = made(**source(monkeypatch))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", None)
    found = judged(Path("workplace/store"))
    assert (found.rows, found.faults, found.lost_inputs, found.largest_difference) == (9, [], [], 0.0)
    assert Path.cwd() == tmp_path and embedx.open(store).complete


@pytest.mark.soak
def test_a_source_that_is_gone_as_a_whole_is_told_row_by_row(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = made(**as_embedded_images(monkeypatch))
    Path("images.parquet").unlink()
    found = judged(store)
    assert (found.rows, found.faults, len(found.lost_inputs)) == (0, [], 9)
    assert "its input can't be read any more (--data" in found.lost_inputs[0]


def test_another_checkpoint_is_told_and_nothing_recomputed(workplace: Path) -> None:
    shutil.copy(sample.CHECKPOINT, "weights.safetensors")
    settings: dict[str, Any] = {"backbone": sample.BACKBONE, "checkpoint": Path("weights.safetensors")}
    store = made(**settings)
    before = hashlib.sha256(sample.CHECKPOINT.read_bytes()).hexdigest()[:12]
    data = bytearray(sample.CHECKPOINT.read_bytes())
    data[-1] ^= 1
    Path("weights.safetensors").write_bytes(data)
    after = hashlib.sha256(data).hexdigest()[:12]
    with pytest.raises(StoreMismatchError, match=rf"recipe\.weights\.sha256: {before}… → {after}…\nno row was"):
        judged(store)
    Path("weights.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"weights\.safetensors"):
        judged(store)


def test_code_that_a_store_names_is_run_only_if_it_is_trusted(workplace: Path) -> None:
    store = made()
    Path("has-run").unlink()
    sys.modules.pop("tiny_backbone")
    with pytest.raises(ConfigError, match=r"tiny_backbone:build; loading it runs code .* add --trust"):
        judged(store, trust=False)
    assert not Path("has-run").exists()


def test_a_store_that_does_not_say_how_it_was_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not say how it was made"):
        judged(build_store(tmp_path / "store"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_the_recipe_s_device_another_one_is_taken_and_told(workplace: Path) -> None:
    store = made()
    manifest = Manifest.read(store)
    dataclasses.replace(manifest, recipe=manifest.recipe.replacing(device="cuda", precision="tf32")).write(store)
    console = Console(file=io.StringIO(), width=200)
    found = judged(store, console=console)
    assert (found.device, found.allowed, found.faults) == ("cpu", TOLERANCE_BY_PRECISION["tf32"], [])
    assert "made on cuda, which this machine lacks: cpu recomputes it" in written(console)
    with pytest.raises(ConfigError, match="torch sees 0 CUDA devices"):
        judged(store, device="cuda")


def test_what_has_changed_around_it_is_told(workplace: Path) -> None:
    store = made()
    manifest = Manifest.read(store)
    dataclasses.replace(manifest, environment=manifest.environment.replacing(torch="1.0")).write(store)
    gone = manifest.settings.replacing(working_directory="/nowhere")
    console = Console(file=io.StringIO(), width=200)
    assert judged(store, console=console).faults == []
    assert f"since the store was begun: torch: 1.0 → {version('torch')}" in written(console)
    dataclasses.replace(manifest, settings=gone).write(store)
    assert judged(store, console=console).faults == []
    assert "/nowhere, where the store was made, is gone" in written(console)
