"""Each input's verdict, and its place in the updated store, on tables alone: no run, no file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from embedx.data.plan import Plan, SplitPlan
from embedx.run import changes as module
from embedx.run.changes import Changes, Verdict, compare
from embedx.run.update import lay_out
from embedx.store.format.index import INDEX_SCHEMA
from embedx.store.format.layout import Unit

PLAN_TYPES = {"key": pa.string(), "path": pa.binary(), "offset": pa.int64(), "size": pa.int64(), "mtime_ns": pa.int64()}
PLAN_TYPES |= {"group": pa.string(), "target": pa.int64()}
ROWS_PER_UNIT = 3


def stored_row(index: int, content: str, *, target: int = 0, status: str = "ok") -> dict[str, Any]:
    """The index row of the input `k{index}`, as large as its content is long."""
    row = {"split": "all", "index": index, "key": f"k{index}", "path": f"k{index}", "target": target, "status": status}
    row |= {"bytes": len(content), "mtime_ns": 1, "sha256": content}
    return row if status == "rejected" else row | {"shard": "all/shard-00000.safetensors", "row": index}


def differences(
    monkeypatch: pytest.MonkeyPatch, rows: Sequence[dict[str, Any]], inputs: dict[str, str], **options: Any
) -> Changes:
    """Compares inputs, by key their content, with stored rows; others were written later."""
    monkeypatch.setattr(module, "read_index", lambda path: pa.Table.from_pylist(list(rows), schema=INDEX_SCHEMA))
    stored = {row["key"]: row["sha256"] for row in rows}
    columns = {
        "key": list(inputs),
        "path": [key.encode() for key in inputs],
        "size": [len(content) for content in inputs.values()],
        "mtime_ns": [1 if stored.get(key) == content else 2 for key, content in inputs.items()],
        "target": [0] * len(inputs),
    }
    nothing = [None] * len(inputs)
    table = pa.table({name: pa.chunked_array([columns.get(name, nothing)], kind) for name, kind in PLAN_TYPES.items()})
    contents = list(inputs.values())
    defaults: dict[str, Any] = {"classes": [], "names_differ": True, "retries": lambda status, reason: False}
    plan = Plan({"all": SplitPlan("all", table)}, [], None)
    return compare(plan, [Path("one")], lambda split, rows: [contents[row] for row in rows], **defaults | options)


def test_every_input_has_one_verdict_from_which_counts_examples_and_sources_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [
        *(stored_row(0, "same"), stored_row(1, "before"), stored_row(2, "moves"), stored_row(3, "goes")),
        *(stored_row(4, "label", target=7), stored_row(5, "broken", status="rejected")),
    ]
    inputs = {"k0": "same", "k1": "after", "other": "moves", "k4": "label", "k5": "broken", "k9": "fresh"}
    found = differences(monkeypatch, rows, inputs, retries=lambda status, reason: True)
    expected = ["UNCHANGED", "CHANGED", "RENAMED", "RELABELLED", "RETRIED", "NEW"]
    assert [Verdict(verdict).name for verdict in found.splits["all"].verdicts] == expected
    assert found.splits["all"].source_row.tolist() == [0, -1, 2, 4, -1, -1]
    assert found.gone.tolist() == [3] and set(found.counts.values()) == {0, 1} and found.counts["pending"] == 0
    assert found.describe() == (
        "1 new (such as 'k9'), 1 changed (such as 'k1'), 1 gone (such as 'k3'), 1 renamed (such as 'other'), "
        "1 relabelled (such as 'k4'), 1 retried, 1 unchanged"
    )
    pending = differences(monkeypatch, rows[:1], {"k0": "same", "k9": "fresh"}, names_differ=False)
    assert pending.describe() == "1 pending (such as 'k9'), 1 unchanged" and not pending.inputs_differ


def test_units_without_a_difference_are_linked_and_new_rows_fill_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [stored_row(index, f"content {index}") for index in range(7)]
    inputs = {f"k{index}": f"content {index}" for index in (0, 1, 2, 3, 5, 6)}
    inputs |= dict.fromkeys(("na", "nb", "nc", "nd"), "new")
    layout = lay_out(differences(monkeypatch, rows, inputs), ROWS_PER_UNIT)
    assert layout.linked == {Unit("all", 0): None}
    assert layout.units == {Unit("all", 0): 3, Unit("all", 1): 3, Unit("all", 2): 3, Unit("all", 3): 1}
    kept = {unit.number: staying.rows["key"].to_pylist() for unit, staying in layout.staying.items()}
    assert kept == {1: ["k3", "k5"], 2: ["k6"]}
    positions = layout.plan.splits["all"].positions
    assert positions is not None
    assert dict(zip(inputs, positions.tolist(), strict=True)) == {
        "k0": 0,
        "k1": 1,
        "k2": 2,
        "k3": 3,
        "k5": 4,
        "na": 5,
        "k6": 6,
        "nb": 7,
        "nc": 8,
        "nd": 9,
    }
    assert layout.computed == {"all": [6, 7, 8, 9]}
