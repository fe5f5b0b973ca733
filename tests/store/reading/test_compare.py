from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

import embedx
from embedx.errors import ConfigError, StoreError
from embedx.store.format.contents import Environment
from embedx.store.format.manifest import Manifest
from embedx.store.reading import compare as module
from embedx.store.reading import drift as drift_module
from embedx.store.writing.session import StoreSession
from embedx.store.writing.units import UnitBuffer
from tests.store.builders import ROWS_PER_UNIT, build_store, manifest, restate, unit_batch

ROWS = 20


def write(
    out: Path,
    tensors: dict[str, Tensor],
    *,
    order: list[int] | None = None,
    rejected: tuple[int, ...] = (),
    sha256: dict[int, str] | None = None,
    split: str = "train",
    group_key: str | None = "class",
    stated: Manifest | None = None,
) -> Path:
    """A store whose row of key i has row i of the tensors, in the given order of keys."""
    order = order or list(range(len(tensors["embeddings"])))
    session = StoreSession.begin(out, stated or manifest({split: len(order)}, group_key=group_key), "create")
    for start in range(0, len(order), ROWS_PER_UNIT):
        keys = order[start : start + ROWS_PER_UNIT]
        batch = unit_batch(start, start + len(keys), split=split)
        columns = {
            "key": [f"key-{key}" for key in keys],
            "status": ["rejected" if key in rejected else "ok" for key in keys],
            "sha256": [(sha256 or {}).get(key, "0" * 64) for key in keys],
        }
        rows = batch.rows
        for name, values in columns.items():
            rows = rows.set_column(rows.column_names.index(name), name, pa.array(values, pa.string()))
        buffer = UnitBuffer(session.terms)
        buffer.add(batch._replace(tensors={name: values[keys] for name, values in tensors.items()}, rows=rows))
        buffer.commit()
    session.finish({})
    session.close()
    return out


@pytest.fixture
def vectors() -> Tensor:
    return torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(4))


def drifts(a: Tensor, b: Tensor) -> np.ndarray:
    """The definition, in numpy's float64."""
    one, other = a.double().numpy(), b.double().numpy()
    return 1 - (one * other).sum(1) / (np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1))


def test_a_store_and_itself_are_bit_equal(tmp_path: Path, vectors: Tensor) -> None:
    store = write(tmp_path / "store", {"embeddings": vectors})
    comparison = embedx.compare(store, store)
    assert comparison.drift["embeddings"] == drift_module.Drift(ROWS, ROWS, 0, 0, 0.0, 0.0, 0.0, ())
    assert comparison.overlap == {"train": module.Overlap(ROWS, 0, 0, 0, 0)}
    assert comparison.differences == () and comparison.unfinished == ()


@pytest.mark.parametrize("chunk", [1, 200, 1 << 24])
def test_drift_is_by_key_whatever_order_groups_and_units(
    tmp_path: Path, vectors: Tensor, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(drift_module, "_CHUNK_BYTES", chunk)
    moved = vectors + 0.01 * torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(5))
    moved[13] = -vectors[13]
    moved[4] = vectors[4]
    layer = torch.arange(ROWS * 8, dtype=torch.int64).reshape(ROWS, 2, 4)
    order = list(reversed(range(ROWS)))
    a = write(tmp_path / "a", {"layer": layer, "embeddings": vectors}, group_key=None)
    b = write(tmp_path / "b", {"layer": layer, "embeddings": moved}, order=order)
    comparison = embedx.compare(a, b)
    assert list(comparison.drift) == ["embeddings", "layer"]
    drift, expected = comparison.drift["embeddings"], drifts(vectors, moved)
    assert comparison.drift_of_splits == {"embeddings": {"train": drift}, "layer": {"train": comparison.drift["layer"]}}
    assert (drift.rows, drift.bit_equal, drift.not_finite, drift.zero) == (ROWS, 1, 0, 0)
    assert drift.median == pytest.approx(np.median(expected), rel=1e-9) and drift.worst == pytest.approx(2)
    assert drift.largest_difference == pytest.approx((vectors.double() - moved.double()).abs().max().item())
    worst = [f"key-{row}" for row in np.argsort(-expected)[:10]]
    assert [row.key for row in drift.furthest] == worst and worst[0] == "key-13"
    assert drift.furthest[0].path == f"/images/{ROWS - 1 - 13}.jpg" and drift.furthest[0].split == "train"
    assert (comparison.drift["layer"].bit_equal, comparison.drift["layer"].worst) == (ROWS, 0)
    assert list(embedx.compare(a, b, ["layer"]).drift) == ["layer"]


def test_what_can_not_be_compared_is_counted_and_left_out(tmp_path: Path, vectors: Tensor) -> None:
    shifted = vectors + torch.tensor([1e3] * 6)  # all else would show in the numbers
    moved = torch.where(torch.arange(ROWS)[:, None] < 6, shifted, vectors)
    a = write(tmp_path / "a", {"embeddings": vectors}, rejected=(0,), order=list(range(ROWS - 3)))
    b = write(tmp_path / "b", {"embeddings": moved}, rejected=(1, 2), sha256=dict.fromkeys((3, 4, 5, 0), "1" * 64))
    comparison = embedx.compare(a, b)
    assert comparison.overlap["train"] == module.Overlap(
        compared=ROWS - 9, only_in_a=0, only_in_b=3, rejected=3, changed=3
    )
    assert comparison.drift["embeddings"].worst == 0 and comparison.drift["embeddings"].rows == ROWS - 9
    assert embedx.compare(b, a).overlap["train"].only_in_a == 3


def test_rows_that_are_not_finite_or_zero_are_told_and_poison_nothing(tmp_path: Path, vectors: Tensor) -> None:
    first, second = vectors.clone(), vectors.clone()
    first[2, 3], second[5, 0] = torch.nan, torch.inf
    first[7], second[7], second[9] = 0, 0, 0
    comparison = embedx.compare(
        write(tmp_path / "a", {"embeddings": first}), write(tmp_path / "b", {"embeddings": second})
    )
    drift = comparison.drift["embeddings"]
    assert (drift.rows, drift.bit_equal, drift.not_finite, drift.zero) == (ROWS, ROWS - 3, 2, 2)
    assert (drift.median, drift.worst) == (0, 1) and [row.key for row in drift.furthest] == ["key-9"]
    assert drift.largest_difference == vectors[9].abs().max()
    nothing = torch.full((ROWS, 6), torch.nan)
    all_lost = embedx.compare(tmp_path / "a", write(tmp_path / "c", {"embeddings": nothing})).drift["embeddings"]
    assert (all_lost.median, all_lost.worst, all_lost.not_finite) == (None, None, ROWS)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_neither_tiny_nor_huge_numbers_lose_their_direction(tmp_path: Path, vectors: Tensor, scale: float) -> None:
    moved = vectors.double() + 1e-7
    a = write(tmp_path / "a", {"embeddings": vectors.double() * scale})
    b = write(tmp_path / "b", {"embeddings": moved * scale})
    drift = embedx.compare(a, b).drift["embeddings"]
    assert drift.worst is not None and 0 < drift.worst < 1e-12


def test_half_precision_against_single(tmp_path: Path, vectors: Tensor) -> None:
    a = write(tmp_path / "a", {"embeddings": vectors})
    b = write(tmp_path / "b", {"embeddings": vectors.bfloat16()})
    drift = embedx.compare(a, b).drift["embeddings"]
    assert drift.bit_equal == 0 and drift.worst == pytest.approx(drifts(vectors, vectors.bfloat16()).max(), rel=1e-6)


def test_what_differs_in_recipe_and_environment_is_told(tmp_path: Path, vectors: Tensor) -> None:
    stated = manifest({"train": ROWS})
    old = dataclasses.replace(
        stated,
        environment=Environment.from_json({"torch": "2.11", "cores": 2}),
        later_environments=[Environment.from_json({"torch": "2.12", "cores": 2})],
    )
    new = dataclasses.replace(
        stated, recipe=stated.recipe.replacing(precision="bf16"), environment=Environment.from_json({"torch": "2.15"})
    )
    a = write(tmp_path / "a", {"embeddings": vectors}, stated=old)
    b = write(tmp_path / "b", {"embeddings": vectors}, stated=new)
    assert embedx.compare(a, b).differences == (
        module.Difference("recipe.precision", None, "bf16"),
        module.Difference("environment.cores", 2, None),
        module.Difference("environment.torch", "2.11, then 2.12", "2.15"),
    )
    contents = json.loads(json.dumps(embedx.compare(a, b).to_json()))
    assert contents["differences"][0] == {"name": "recipe.precision", "a": None, "b": "bf16"}
    assert contents["drift"]["embeddings"]["bit_equal"] == ROWS and contents["overlap"]["train"]["compared"] == ROWS


def test_splits_are_told_apart(tmp_path: Path, vectors: Tensor) -> None:
    both = manifest({"train": ROWS, "val": ROWS})
    stores = []
    for name, of_val in (("a", vectors), ("b", vectors.roll(1, 1))):
        session = StoreSession.begin(tmp_path / name, both, "create")
        for split, values in (("train", vectors), ("val", of_val)):
            for start in range(0, ROWS, ROWS_PER_UNIT):
                stop = min(start + ROWS_PER_UNIT, ROWS)
                batch = unit_batch(start, stop, split=split)._replace(tensors={"embeddings": values[start:stop]})
                buffer = UnitBuffer(session.terms)
                buffer.add(batch)
                buffer.commit()
        session.finish({})
        session.close()
        stores.append(tmp_path / name)
    comparison = embedx.compare(stores[0], stores[1])
    train, val = (comparison.drift_of_splits["embeddings"][split] for split in ("train", "val"))
    whole, expected = comparison.drift["embeddings"], drifts(vectors, vectors.roll(1, 1))
    assert train.worst == 0 and val.worst == pytest.approx(expected.max()) == whole.worst
    assert whole.rows == 2 * ROWS and whole.median == pytest.approx(np.median([0.0] * ROWS + list(expected)))
    assert {row.split for row in whole.furthest} == {"val"} and len(whole.furthest) == 10


def test_nothing_to_compare_is_an_error_that_says_why(tmp_path: Path, vectors: Tensor) -> None:
    a = write(tmp_path / "a", {"embeddings": vectors})
    with pytest.raises(ConfigError, match=r"no row .*20 inputs are only in the first, 20 only in the second.* val$"):
        embedx.compare(a, write(tmp_path / "other", {"embeddings": vectors}, split="val"))
    with pytest.raises(ConfigError, match=r"'embeddings' has \[6\] numbers per row in .*a, and \[5\] in"):
        embedx.compare(a, write(tmp_path / "narrow", {"embeddings": vectors[:, :5]}))
    with pytest.raises(ConfigError, match="unknown tensor 'layer'; valid: embeddings"):
        embedx.compare(a, a, ["layer"])
    with pytest.raises(StoreError, match="not a store"):
        embedx.compare(a, tmp_path)


def test_an_unfinished_store_is_compared_as_far_as_it_goes(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", inputs=12)
    (store / "index" / "train-00001.parquet").unlink()
    session = StoreSession.begin(store, manifest({"train": 12}), "resume")
    session.close()
    comparison = embedx.compare(store, build_store(tmp_path / "whole", inputs=12))
    assert comparison.unfinished == (store,)
    assert comparison.overlap["train"] == module.Overlap(compared=7, only_in_a=0, only_in_b=4, rejected=1, changed=0)


def test_no_file_is_opened_but_a_unit_s_own_shards(tmp_path: Path, vectors: Tensor) -> None:
    """An index table, as a stranger may write it, names a shard of another store."""
    a, b = (write(tmp_path / name, {"embeddings": vectors}, group_key=None) for name in ("a", "b"))
    from pyarrow import parquet

    path = b / "index" / "train-00000.parquet"
    table = parquet.read_table(path)
    outside = pa.array(["../a/train/shard-00000.safetensors"] * len(table))
    parquet.write_table(table.set_column(table.column_names.index("shard"), "shard", outside), path)
    with pytest.raises(StoreError, match=r"not a readable index table|its index table disagree"):
        embedx.compare(a, restate(b))
