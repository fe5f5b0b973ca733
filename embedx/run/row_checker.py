"""Compares the rows that were computed again with the rows that the store holds."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from embedx.data.plan import SplitPlan
from embedx.data.sources import find_reader
from embedx.data.sources.base import as_path
from embedx.data.sources.kinds import SourceOptions
from embedx.engine.callback import Callback
from embedx.engine.state import Batch, Outputs, TrainerState
from embedx.errors import ConfigError
from embedx.store.reading.reader import Store
from embedx.store.reading.stored_rows import StoredRows


class RowChecker(Callback):
    """Compares computed rows with the rows that a store holds.

    Args:
        store: The store to check.
        chosen: The index rows to check, per split; a batch's `index` is a position among them.
        tolerance: The largest allowed difference, relative to the row's largest absolute value.
    """

    def __init__(self, store: Store, chosen: dict[str, pa.Table], tolerance: float) -> None:
        super().__init__()
        self.stored = StoredRows(store.path, store.units.values())
        self.chosen = chosen
        self.tolerance = tolerance
        self.compared = 0
        self.largest = 0.0
        self.faults: list[str] = []
        self.lost_inputs: list[str] = []

    def plans(self, options: SourceOptions) -> Iterator[tuple[str, SplitPlan]]:
        """Yields each split's chosen rows as a plan; a split whose source can't be opened counts as lost inputs."""
        for split, rows in self.chosen.items():
            try:
                yield split, _plan(split, rows, options)
            except ConfigError as error:
                for key in rows["key"].to_pylist():
                    self.lost_inputs.append(f"{_name(split, key)}: its input can't be read any more ({error})")

    def on_test_batch_end(
        self,
        trainer_state: TrainerState,
        model: nn.Module,
        outputs: Outputs,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Compares the rows whose inputs are the same as then, and notes the inputs that are not."""
        split = list(trainer_state["test_dataloader"] or ())[dataloader_idx]
        rows = self.chosen[split].take(pa.array(batch["index"].numpy()))
        same = []
        for position, row in enumerate(rows.select(["key", "bytes", "sha256"]).to_pylist()):
            reason, size, sha256 = (batch[name][position] for name in ("reasons", "bytes", "sha256"))
            name = _name(split, row["key"])
            if sha256 is None:
                self.lost_inputs.append(f"{name}: its input can't be read any more ({reason})")
            elif sha256 != row["sha256"]:
                sizes = f"{row['bytes']} bytes then, {size} now" if size != row["bytes"] else f"{size} bytes"
                self.lost_inputs.append(f"{name}: its input has changed since ({sizes}, another sha256)")
            elif reason is not None:
                self.faults.append(f"{name}: its input, which is the same, would be rejected now: {reason}")
            else:
                same.append(position)
        if same:
            selected = torch.tensor(same)
            self._compare(split, rows.take(pa.array(same)), {name: value[selected] for name, value in outputs.items()})

    def _compare(self, split: str, rows: pa.Table, computed: dict[str, Tensor]) -> None:
        self.compared += len(rows)
        for name, values in computed.items():
            stored = self.stored.gather(name, rows)
            differences = _differences(values.cpu().to(stored.dtype), stored)
            self.largest = max(self.largest, differences.max().item())
            for position in (differences > self.tolerance).nonzero().flatten().tolist():
                row = rows.slice(position, 1).to_pylist()[0]
                self.faults.append(
                    f"{_name(split, row['key'])}: {name!r}, row {row['row']} of {row['shard']}, is not what its input "
                    f"gives: a number differs by {differences[position]:.3g} of the row's largest "
                    f"(allowed {self.tolerance:g})"
                )


def _plan(split: str, rows: pa.Table, options: SourceOptions) -> SplitPlan:
    """Returns a plan of these index rows, with a reader of their source.

    Raises:
        ConfigError: If the source that they are parts of can't be opened.
    """
    paths = [as_path(path) for path in rows["path"].to_pylist()]
    columns: dict[str, Any] = {"key": rows["key"], "path": pa.array(paths, pa.binary()), "offset": rows["offset"]}
    columns |= {"size": rows["bytes"]} | {name: rows[name] for name in ("mtime_ns", "group", "target")}
    reader = find_reader(os.fsdecode(paths[0]), rows["offset"][0].as_py(), options)
    return SplitPlan(split, pa.table(columns), reader)


def _differences(computed: Tensor, stored: Tensor) -> Tensor:
    """Returns [N] float64: each row's largest difference, relative to the stored row's largest absolute value."""
    a, b = (rows.reshape(len(rows), -1).double() for rows in (computed, stored))
    difference, largest = (a - b).abs().amax(dim=1), b.abs().amax(dim=1)
    relative = torch.where(difference == 0, 0.0, difference / largest)
    return relative.nan_to_num(nan=math.inf, posinf=math.inf)


def _name(split: str, key: str) -> str:
    return f"split {split!r}, key {key!r}"
