"""The identities of a batch's inputs, as rows of the index table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from embedx.arrow import spell
from embedx.engine.state import Batch
from embedx.errors import ConfigError
from embedx.names import RESERVED_COLUMNS
from embedx.store.format.index import OK, REJECTED, ROW_SCHEMA, UNAVAILABLE
from embedx.store.format.shards import UNKNOWN_TARGET


def rows_table(batch: Batch, split: str, group_key: str | None) -> pa.Table:
    """Makes a table of the identities of a batch's inputs.

    Args:
        batch: The batch, with at least `index` and `keys`.
        split: The split's name.
        group_key: The metadata field that becomes the group; None leaves the group empty.

    Returns:
        One row per input: ROW_SCHEMA's columns, then the metadata.

    Raises:
        ConfigError: If `index` or `keys` is missing, the group key is not in the metadata, or an entry does not have
            one plain value per row.
    """
    if missing := [name for name in ("index", "keys") if name not in batch]:
        raise ConfigError(f"the batch has no {' and no '.join(missing)}; it has {', '.join(batch)}")
    metadata: Mapping[str, Any] = batch.get("metadata") or {}
    if group_key is not None and group_key not in metadata:
        raise ConfigError(
            f"the group key {group_key!r} is not in the batch's metadata, which has {', '.join(metadata) or 'nothing'}"
        )
    if clashing := sorted(RESERVED_COLUMNS.intersection(metadata)):
        raise ConfigError(f"metadata can't be named {', '.join(clashing)}: the index table has columns of that name")
    count = len(batch["index"])
    nothing = [None] * count
    reasons = batch.get("reasons", nothing)
    failed = [UNAVAILABLE if passing else REJECTED for passing in batch.get("unavailable", nothing)]
    columns = {
        "split": [split] * count,
        "index": batch["index"].tolist(),
        "key": batch["keys"],
        "path": batch.get("paths", nothing),
        "offset": batch.get("offsets", nothing),
        "group": spell(pa.chunked_array([_array(metadata[group_key])])) if group_key is not None else nothing,
        "target": _targets(batch, count),
        "status": [OK if reason is None else status for reason, status in zip(reasons, failed, strict=False)],
        "reason": reasons,
        "bytes": batch.get("bytes", nothing),
        "mtime_ns": batch.get("mtime_ns", nothing),
        "sha256": batch.get("sha256", nothing),
    }
    try:
        table = pa.table(columns, schema=ROW_SCHEMA)
        for name, values in metadata.items():
            table = table.append_column(name, _array(values))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise ConfigError(f"the batch's entries are not a plain value for each of its {count} rows: {error}") from error
    return table


def reject(rows: pa.Table, reasons: Mapping[int, str]) -> pa.Table:
    """Returns the table with these rows rejected, each for the reason that stands under its position."""
    for name, new in (("status", dict.fromkeys(reasons, REJECTED)), ("reason", reasons)):
        values = [new.get(row, value) for row, value in enumerate(rows[name].to_pylist())]
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), [values])
    return rows


def _array(values: Any) -> pa.Array:
    """Makes an Arrow array of a metadata field, which torch's default collation may have made a tensor."""
    return pa.array(values.tolist() if isinstance(values, Tensor) else values)


def _targets(batch: Batch, count: int) -> list[int | None]:
    if "targets" not in batch:
        return [None] * count
    targets = torch.as_tensor(batch["targets"])
    if targets.is_floating_point() or targets.is_complex():
        raise ConfigError(f"the batch's targets are {targets.dtype}; a target is a class's number, an integer")
    return [None if target == UNKNOWN_TARGET else target for target in targets.tolist()]
