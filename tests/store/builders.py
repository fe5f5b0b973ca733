"""Small stores, made by the store's own code."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from embedx.store.format.contents import PlanTerms, SplitTerms, StoredRecipe
from embedx.store.format.index import ROW_SCHEMA
from embedx.store.format.layout import Unit
from embedx.store.format.manifest import Manifest
from embedx.store.writing.session import StoreSession
from embedx.store.writing.unit_rows import UnitBatch
from embedx.store.writing.units import UnitBuffer

ROWS_PER_UNIT = 8


def manifest(inputs: dict[str, int], *, group_key: str | None = "class", recipe: str = "r") -> Manifest:
    splits = {split: SplitTerms(count) for split, count in inputs.items()}
    return Manifest(StoredRecipe.from_json({"name": recipe}), PlanTerms(group_key, ROWS_PER_UNIT, splits=splits))


def vectors(start: int, stop: int, dim: int = 3) -> torch.Tensor:
    """Row i is full of i, so that a row tells which input it belongs to."""
    return torch.arange(start, stop, dtype=torch.float32).unsqueeze(1).repeat(1, dim)


def unit_batch(
    start: int,
    stop: int,
    *,
    split: str = "train",
    rejected: tuple[int, ...] = (),
    groups: Mapping[int, str | None] | None = None,
) -> UnitBatch:
    rows = range(start, stop)
    table = pa.table(
        {
            "split": [split] * len(rows),
            "index": list(rows),
            "key": [f"key-{row}" for row in rows],
            "path": [f"/images/{row}.jpg" for row in rows],
            "offset": [None for _ in rows],
            "group": [(groups or {}).get(row, "cat" if row % 2 else "dog") for row in rows],
            "target": [None if row == 3 else row % 2 for row in rows],
            "status": ["rejected" if row in rejected else "ok" for row in rows],
            "reason": ["broken" if row in rejected else None for row in rows],
            "bytes": list(rows),
            "mtime_ns": list(rows),
            "sha256": ["0" * 64 for _ in rows],
        },
        schema=ROW_SCHEMA,
    )
    return UnitBatch(Unit(split, start // ROWS_PER_UNIT), {"embeddings": vectors(start, stop)}, table)


def build_store(
    out: Path,
    inputs: int | Mapping[str, int] = 12,
    *,
    rejected: tuple[int, ...] = (2,),
    group_key: str | None = "class",
    groups: Mapping[int, str | None] | None = None,
    recipe: str = "r",
) -> Path:
    """A complete store of one split, train, or of those in `inputs`, written in this process."""
    splits = {"train": inputs} if isinstance(inputs, int) else dict(inputs)
    session = StoreSession.begin(out, manifest(splits, group_key=group_key, recipe=recipe), "create")
    for split, count in splits.items():
        for start in range(0, count, ROWS_PER_UNIT):
            stop = min(start + ROWS_PER_UNIT, count)
            commit(session, unit_batch(start, stop, split=split, rejected=rejected, groups=groups))
    session.finish({"seconds": 1.0})
    session.close()
    return out


def restate(store: Path) -> Path:
    """States the sha256 that the index tables have now in the manifest, as a stranger would."""
    stated = Manifest.read(store)
    index = {
        name: hashlib.sha256((store / name).read_bytes()).hexdigest()
        for name in stated.index
        if (store / name).is_file()
    }
    dataclasses.replace(stated, index=index).write(store)
    return store


def commit(session: StoreSession, batch: UnitBatch) -> None:
    buffer = UnitBuffer(session.terms)
    buffer.add(batch)
    buffer.commit()


def write_features(
    out: Path,
    splits: Mapping[str, tuple[torch.Tensor, Sequence[int | None]]],
    *,
    names: Sequence[str] | None = None,
    column: str = "class",
    rows_per_unit: int = 64,
    more: Mapping[str, Mapping[str, Sequence[Any]]] | None = None,
) -> Path:
    """A complete store of these embeddings [N, D] and targets, with a column of names if the targets have some.

    `more` has further columns of ROW_SCHEMA, such as `sha256`, by split.
    """
    plan = PlanTerms(None, rows_per_unit, splits={split: SplitTerms(len(rows)) for split, (rows, _) in splits.items()})
    session = StoreSession.begin(out, Manifest(StoredRecipe.from_json({"name": "features"}), plan), "create")
    for split, (rows, targets) in splits.items():
        count = len(rows)
        nothing = [None] * count
        columns: dict[str, Any] = dict.fromkeys(ROW_SCHEMA.names, nothing)
        columns |= {"split": [split] * count, "index": range(count), "key": [f"key-{row}" for row in range(count)]}
        columns |= {"target": list(targets), "status": ["ok"] * count, **(more or {}).get(split, {})}
        table = pa.table(columns, schema=ROW_SCHEMA)
        if names is not None:
            table = table.append_column(column, pa.array([None if t is None else names[t] for t in targets]))
        for start in range(0, count, rows_per_unit):
            part = slice(start, start + rows_per_unit)
            unit = Unit(split, start // rows_per_unit)
            commit(session, UnitBatch(unit, {"embeddings": rows[part]}, table.slice(start, rows_per_unit)))
    session.finish({"seconds": 1.0})
    session.close()
    return out
