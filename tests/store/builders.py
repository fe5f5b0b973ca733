"""Small stores, made by the store's own code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import torch

from embedx.store.index import ROW_SCHEMA
from embedx.store.layout import Unit
from embedx.store.manifest import Manifest
from embedx.store.session import StoreSession
from embedx.store.units import UnitBatch, UnitBuffer

ROWS_PER_UNIT = 8


def manifest(inputs: dict[str, int], *, group_key: str | None = "class", recipe: str = "r") -> Manifest:
    splits = {split: {"inputs": count} for split, count in inputs.items()}
    plan = {"group_key": group_key, "rows_per_unit": ROWS_PER_UNIT, "splits": splits}
    return Manifest(recipe={"name": recipe}, plan=plan, environment={})


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
    inputs: int = 12,
    *,
    rejected: tuple[int, ...] = (2,),
    group_key: str | None = "class",
    groups: Mapping[int, str | None] | None = None,
) -> Path:
    """A complete store of one split, train, written in this process."""
    session = StoreSession.begin(out, manifest({"train": inputs}, group_key=group_key), "create")
    for start in range(0, inputs, ROWS_PER_UNIT):
        batch = unit_batch(start, min(start + ROWS_PER_UNIT, inputs), rejected=rejected, groups=groups)
        buffer = UnitBuffer(session.terms, batch.unit)
        buffer.add(batch)
        buffer.commit()
    session.finish({"seconds": 1.0})
    session.close()
    return out
