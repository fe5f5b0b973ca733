"""The table of a batch's rows: its columns, and entries that do not fit."""

from __future__ import annotations

import pytest
import torch

from embedx.callbacks.rows_table import rows_table
from embedx.engine.state import Batch
from embedx.errors import ConfigError


def batch(rows: int) -> Batch:
    return {"index": torch.arange(rows), "keys": [f"key-{row}" for row in range(rows)]}


def test_rows_without_anything_but_keys_are_rows() -> None:
    table = rows_table({"index": torch.tensor([3, 4]), "keys": ["a", "b"]}, "val", None)
    assert table.select(["split", "index", "key", "status"]).to_pylist() == [
        {"split": "val", "index": 3, "key": "a", "status": "ok"},
        {"split": "val", "index": 4, "key": "b", "status": "ok"},
    ]
    assert table["group"].null_count == table["target"].null_count == 2


@pytest.mark.parametrize(
    "fault",
    [
        {"keys": ["only one"]},
        {"metadata": {"site": ["only one"]}},
        {"targets": torch.zeros(3, dtype=torch.int64)},
        {"metadata": {"site": [object(), object()]}},
    ],
    ids=lambda fault: next(iter(fault)),
)
def test_columns_that_do_not_fit_are_a_clear_error(fault: Batch) -> None:
    with pytest.raises(ConfigError):
        rows_table(batch(2) | fault, "all", None)


def test_targets_that_are_no_class_numbers_are_refused() -> None:
    with pytest.raises(ConfigError):
        rows_table(batch(1) | {"targets": torch.tensor([1.5])}, "all", None)


def test_metadata_may_be_tensors() -> None:
    table = rows_table(batch(2) | {"metadata": {"age": torch.tensor([1, 2])}}, "all", "age")
    assert table["age"].to_pylist() == [1, 2]
    assert table["group"].to_pylist() == ["1", "2"]
