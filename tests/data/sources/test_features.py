from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import embedx
from embedx import ExtractConfig, sample
from embedx.data.sources import parse_data
from embedx.data.sources.feature_files import RowReader
from embedx.data.sources.kinds import SourceOptions
from embedx.errors import ConfigError
from embedx.run.extract import extract
from embedx.store.reading.verify import verify

NUMBERS = np.random.default_rng(0).normal(size=(23, 5)).astype(np.float32)


def config(out: Path, *data: str, **settings: Any) -> ExtractConfig:
    defaults: dict[str, Any] = {"backbone": "none", "batch_size": 4, "workers": 0, "out": out, "data": data}
    return ExtractConfig(**defaults | settings)


def stored(out: Path, *data: str, split: str = "all", **settings: Any) -> embedx.Embeddings:
    extract(config(out, *data, **settings))
    assert list(verify(out)) == []
    return embedx.open(out).load(split)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """All the rows in one array, in parts, and one file each below two classes."""
    np.save(tmp_path / "all.npy", NUMBERS)
    for part in range(3):
        np.save(tmp_path / f"part-{part}.npy", NUMBERS[part * 8 : part * 8 + 8])
    for row, numbers in enumerate(NUMBERS):
        folder = tmp_path / "single" / "ab"[row % 2]
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{row:02d}.npy", numbers)
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_of_one_file_of_parts_and_of_single_files_are_stored_as_they_are(files: Path, workers: int) -> None:
    one = stored(files / "one", str(files / "all.npy"), workers=workers)
    assert np.array_equal(one.embeddings, NUMBERS)
    assert one.keys[:2] == ["all.npy/00000000", "all.npy/00000001"] and one.targets is None
    parts = stored(files / "parts", f"train={files}/part-*.npy", split="train", group_key="file", workers=workers)
    assert np.array_equal(parts.embeddings, NUMBERS)
    assert parts.groups[:9] == ["part-0.npy"] * 8 + ["part-1.npy"]
    single = stored(files / "by-class", str(files / "single"), group_key="class", workers=workers)
    assert np.array_equal(single.embeddings, np.concatenate([NUMBERS[::2], NUMBERS[1::2]]))
    assert single.targets.tolist() == [0] * 12 + [1] * 11


def test_a_store_s_shards_are_regrouped_and_resharded_with_their_targets(tmp_path: Path) -> None:
    few = tmp_path / "few"
    for folder in sorted((sample.IMAGES / "val").iterdir())[:3]:
        shutil.copytree(folder, few / folder.name)
    settings: dict[str, Any] = {"backbone": sample.BACKBONE, "weights": "sample", "group_key": "class"}
    extract(config(tmp_path / "first", str(few), **settings))
    first = embedx.open(tmp_path / "first").load("all")
    shards = f"{tmp_path}/first/all/*/shard-*.safetensors"
    again = stored(tmp_path / "second", shards, shard_size=1, group_key="parent")
    assert again.groups == first.groups
    assert np.array_equal(again.embeddings, first.embeddings)
    assert again.targets.tolist() == first.targets.tolist()
    assert len(embedx.open(tmp_path / "second").units) == -(-len(first) // 4)


def test_tokens_are_pooled_and_vectors_scaled(tmp_path: Path) -> None:
    tokens = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(0))
    save_file({"embeddings": tokens.bfloat16(), "other": torch.ones(2)}, tmp_path / "tokens.safetensors")
    expected = torch.nn.functional.normalize(tokens.bfloat16().float().mean(1)).numpy()
    rows = stored(tmp_path / "store", str(tmp_path / "tokens.safetensors"), normalize=True)
    np.testing.assert_allclose(rows.embeddings, expected, atol=1e-6)
    whole = stored(tmp_path / "whole", str(tmp_path / "tokens.safetensors"), pool="none", dtype="bfloat16")
    assert np.array_equal(whole.embeddings, tokens.bfloat16().float().numpy())


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path("/tmp/embedx-bomb").touch, ())


def test_files_that_hold_no_such_features_are_rejected_and_move_no_other_row(files: Path) -> None:
    np.save(files / "single/a/wide.npy", np.zeros(6, np.float32))
    np.save(files / "single/a/words.npy", np.array(["a", "b"]))
    (files / "single/a/cut.npy").write_bytes((files / "single/a/00.npy").read_bytes()[:-4])
    (files / "single/a/bomb.npy").write_bytes(pickle.dumps(Bomb()))
    (files / "single/b/empty.safetensors").write_bytes(b"")
    np.save(files / "single/b/objects.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    rows = stored(files / "store", str(files / "single"))
    assert np.array_equal(rows.embeddings, np.concatenate([NUMBERS[::2], NUMBERS[1::2]]))
    table = embedx.open(files / "store").index("all")
    reasons = {row["key"]: row["reason"] for row in table.to_pylist() if row["reason"]}
    assert len(reasons) == 6 and reasons["a/wide.npy"] == "features of shape [6], not [5]"
    assert all(reasons.values()) and not Path("/tmp/embedx-bomb").exists()


def test_bad_use_is_refused(files: Path) -> None:
    np.save(files / "wide.npy", np.zeros((2, 6), np.float32))
    np.save(files / "scalar.npy", np.float32(1))
    np.save(files / "empty.npy", np.zeros((0, 5)))
    (files / "photos").mkdir()
    shutil.copy(next((sample.IMAGES / "val/star").iterdir()), files / "photos")
    for data, settings, message in (
        ((f"a={files}/all.npy", f"b={files}/wide.npy"), {}, r"differ in shape: \[5\] in split 'a', \[6\] in split 'b'"),
        ((f"{files}/all.npy",), {"backbone": sample.BACKBONE, "weights": "sample"}, "give --backbone none"),
        ((f"{files}/all.npy",), {"weights": "random", "layer": ("conv1",)}, "--weights needs a backbone"),
        ((f"{files}/none*.npy",), {}, "there is no such file"),
        ((f"{files}/scalar.npy",), {}, "no features can be read"),
        ((f"{files}/empty.npy",), {}, "there are none"),
        ((f"{files}/photos",), {}, "no features in .*npy"),
        ((), {}, "no features in .*npy"),
    ):
        with pytest.raises(ConfigError, match=message):
            extract(config(files / "store", *data, **settings))
    assert not (files / "store").exists()


def test_a_reader_is_sent_to_workers_without_the_file_it_has_open(files: Path) -> None:
    reader = RowReader()
    first = reader.read(bytes(files / "all.npy"), 3, None)
    assert pickle.loads(pickle.dumps(reader)).read(bytes(files / "all.npy"), 3, None) == first
    source = parse_data([f"x={files}/all.npy"], SourceOptions(content="features"))["x"]
    assert source.scan()["offset"].to_pylist() == list(range(23))


@pytest.mark.parametrize(
    "settings", [{}, {"normalize": True}, {"pool": "none"}, {"normalize": True, "dtype": "float16"}]
)
def test_rows_loaded_together_are_computed_in_the_recipe_s_shape(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Whether tokens or vectors: each row has the bits that a batch of its own number gives it."""
    tokens = np.random.default_rng(2).normal(size=(67, 3, 5)).astype(np.float32)
    np.save(tmp_path / "tokens.npy", tokens)
    rows = stored(tmp_path / "store", str(tmp_path / "tokens.npy"), batch_size=8, shard_size=512, **settings)
    expected = []
    for start in range(0, 67, 8):
        batch = torch.zeros(8, 3, 5)
        own = torch.from_numpy(tokens[start : start + 8])
        batch[: len(own)] = own
        pooled = batch if settings.get("pool") == "none" else batch.mean(1)
        whole = torch.nn.functional.normalize(pooled, dim=-1) if settings.get("normalize") else pooled
        expected.append(whole[: len(own)].to(getattr(torch, settings.get("dtype", "float32"))))
    assert np.array_equal(rows.embeddings, torch.cat(expected).numpy())
    assert len(embedx.open(tmp_path / "store").units) > 1


def test_a_row_that_is_not_finite_in_the_middle_of_a_run_is_rejected_alone(tmp_path: Path) -> None:
    numbers = NUMBERS.copy()
    numbers[11, 2] = np.nan
    np.save(tmp_path / "rows.npy", numbers)
    rows = stored(tmp_path / "store", str(tmp_path / "rows.npy"))
    assert np.array_equal(rows.embeddings, np.delete(NUMBERS, 11, 0))
    table = embedx.open(tmp_path / "store").index("all")
    assert [row["key"] for row in table.to_pylist() if row["status"] != "ok"] == ["rows.npy/00000011"]
    assert table["sha256"].null_count == 0
