"""Rows that are not finite: from the forward pass, by the cast to the stored type, or for want of a length."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import embedx
from embedx.callbacks.finite_rows import Cause, FiniteCheck, NotFinite
from embedx.callbacks.rows_table import rows_table
from embedx.callbacks.writer import EmbeddingsWriter
from embedx.engine import loop
from embedx.engine.connectors import DataConnector

ROWS = 7
INPUT = DataConnector({"input": "images"})


def batches(values: Tensor) -> list[dict[str, Any]]:
    """Batches of 4 rows, whose images are the embeddings."""
    return [
        {"images": values[index], "index": index, "keys": [f"k{number}" for number in index.tolist()]}
        for index in torch.arange(len(values)).split(4)
    ]


def written(out: Path, model: nn.Module, values: Tensor, **settings: Any) -> dict[str, str]:
    """The reasons of the rejected rows of a store that the writer makes of these values, by key."""
    loop.run_test(model, {"all": batches(values)}, [EmbeddingsWriter(out, **settings)], INPUT)
    assert list(embedx.verify(out)) == []
    rows = embedx.open(out).index("all").to_pylist()
    assert len(rows) == len(values)
    assert all((row["status"] == "rejected") == (row["shard"] is None) for row in rows)
    return {row["key"]: row["reason"] for row in rows if row["status"] == "rejected"}


def identities(count: int) -> pa.Table:
    return rows_table({"index": torch.arange(count), "keys": [f"k{row}" for row in range(count)]}, "all", None)


def reasons_of(rows: pa.Table) -> dict[int, str]:
    return {row: reason for row, reason in enumerate(rows["reason"].to_pylist()) if reason is not None}


def with_value(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """[ROWS, 6], whose row 2 has this value once."""
    values = torch.linspace(-1, 1, ROWS * 6).reshape(ROWS, 6).to(dtype)
    values[2, 3] = value
    return values


FLOAT16, BFLOAT16 = torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    ("value", "computed", "stored", "reason"),
    [
        (math.nan, torch.float32, None, "the forward pass gave NaN: 1 of 6 values of 'embeddings' is not finite"),
        (math.nan, torch.float32, FLOAT16, "the forward pass gave NaN: 1 of 6 values of 'embeddings' is not finite"),
        (math.inf, torch.float32, BFLOAT16, "the forward pass gave infinity: 1 of 6 values of 'embeddings' is"),
        (-math.inf, FLOAT16, torch.float32, "the forward pass gave infinity: 1 of 6"),
        (math.nan, torch.complex64, None, "the forward pass gave NaN: 1 of 6"),
        (
            1e6,
            torch.float32,
            FLOAT16,
            "65504: the largest value of 'embeddings' is 1e+06 (stored as float32 it fits)",
        ),
        (-65520.0, torch.float32, FLOAT16, "beyond float16"),  # half a step above its largest number
        (-65519.0, torch.float32, FLOAT16, None),  # rounded to it
        (65504.0, torch.float32, FLOAT16, None),
        (3.4e38, torch.float32, BFLOAT16, "beyond bfloat16, which ends at 3.38953e+38: "),
        (
            1e300,
            torch.float64,
            torch.float32,
            "float32, which ends at 3.40282e+38: the largest value of",
        ),
        (1e300, torch.float64, None, None),
        (3.4e38, torch.float32, None, None),
    ],
)
def test_one_value_rejects_its_row_and_no_other(
    value: float, computed: torch.dtype, stored: torch.dtype | None, reason: str | None
) -> None:
    """The reference is torch's own cast, looked at number by number."""
    outputs = with_value(value, computed)
    cast = outputs.to(stored or computed)
    heard: list[tuple[int, list[NotFinite]]] = []
    check = FiniteCheck(tell=lambda *batch: heard.append(batch))
    tensors = check.with_largest({"embeddings": outputs}, {"embeddings": cast})
    found = reasons_of(check.judged(identities(ROWS), tensors))
    assert list(tensors) == ["embeddings"]
    assert list(found) == cast.isfinite().all(dim=1).logical_not().nonzero().flatten().tolist()
    assert list(found) == ([2] if reason else [])
    if reason:
        assert reason in found[2]
        assert [(count, [one.key for one in rejected]) for count, rejected in heard] == [(ROWS, ["k2"])]
        assert heard[0][1][0].cause is (Cause.FORWARD if "gave" in reason else Cause.STORED_TYPE)


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e25])
def test_a_vector_whose_length_is_lost_is_rejected_where_it_should_be_one(length: float) -> None:
    features = torch.eye(6)[:3] + 0.1
    features[1] *= length
    scaled = nn.functional.normalize(features)
    assert scaled.isfinite().all() and not math.isclose(scaled[1].norm().item(), 1, rel_tol=1e-3)
    for unit_length, expected in ((True, [1]), (False, [])):
        check = FiniteCheck(unit_length=unit_length)
        found = reasons_of(check.judged(identities(3), check.with_largest({"x": scaled}, {"x": scaled})))
        assert list(found) == expected
        assert all("no unit length" in reason for reason in found.values())


class Named(nn.Module):
    """Gives its input as the embedding, and tokens of it whose fourth row has infinity as an extra layer."""

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        tokens = input.reshape(len(input), 2, 3).clone()
        tokens[(input[:, 0] > 0.1) & (input[:, 0] < 0.3)] = math.inf
        return {"embeddings": input, "blocks.0": tokens, "number": torch.arange(len(input))}


def test_a_users_own_loop_rejects_such_rows_or_takes_them(tmp_path: Path) -> None:
    """The rows that stay are those of a store without the others' values, number for number."""
    found = written(tmp_path / "out", Named(), with_value(math.nan))
    assert found == {
        "k2": "the forward pass gave NaN: 1 of 6 values of 'embeddings' is not finite",
        "k4": "the forward pass gave infinity: 6 of 6 values of 'blocks.0' are not finite",
    }
    sound = with_value(0.5)[[0, 1, 3, 5, 6]]
    shard = load_file(tmp_path / "out/all/shard-00000.safetensors")
    assert shard["index"].tolist() == [0, 1, 3, 5, 6] and torch.equal(shard["embeddings"], sound)
    assert torch.equal(shard["blocks.0"], sound.reshape(5, 2, 3)) and shard["number"].tolist() == [0, 1, 3, 1, 2]

    assert written(tmp_path / "out", Named(), with_value(math.nan), allow_nonfinite=True) == {}
    assert embedx.open(tmp_path / "out").load("all").embeddings.shape == (ROWS, 6)
