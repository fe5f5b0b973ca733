"""Compares the rows that were computed again with the rows that the store holds."""

from __future__ import annotations

import dataclasses
import math

import pyarrow as pa
import torch
from torch import Tensor, nn

from embedx.data.plan import SplitPlan
from embedx.data.sources import LocationReader
from embedx.data.sources.kinds import SourceOptions
from embedx.engine.callback import Callback
from embedx.engine.state import Batch, Outputs, TrainerState
from embedx.paths import is_url
from embedx.run.stored_inputs import plan_of_rows
from embedx.store.reading.reader import Store
from embedx.store.reading.stored_rows import StoredRows


@dataclasses.dataclass
class Recomputation:
    """The result of computing some rows again; differences are relative to a row's largest absolute value."""

    seed: int
    """The seed of the choice of rows."""
    device: str
    """The device that computed them."""
    rows: int = 0
    """The number of rows that were computed and compared."""
    largest_difference: float | None = 0.0
    """The largest difference; None if a computed row is not finite."""
    allowed: float = 0.0
    """The largest allowed difference."""
    faults: list[str] = dataclasses.field(default_factory=list)
    """One sentence per row that differs from what its input gives."""
    lost_inputs: list[str] = dataclasses.field(default_factory=list)
    """One sentence per row that can't be judged, as its input is gone or has changed since."""


class RowChecker(Callback):
    """Compares computed rows with the rows that a store holds.

    Args:
        store: The store to check.
        chosen: The index rows to check, per split; a batch's `index` is a position among them.
        found: The result, to which each batch adds.
    """

    def __init__(self, store: Store, chosen: dict[str, pa.Table], found: Recomputation) -> None:
        super().__init__()
        self.stored = StoredRows(store.folder, store.units.values(), check=True)
        self.chosen = chosen
        self.found = found
        self._largest = 0.0

    def plans(self, options: SourceOptions) -> dict[str, SplitPlan]:
        """Returns each split's chosen rows as a plan."""
        return {split: plan_of_rows(split, rows, LocationReader(options)) for split, rows in self.chosen.items()}

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
                why = f"{reason}; a store keeps no credentials" if is_url(batch["paths"][position] or "") else reason
                self.found.lost_inputs.append(f"{name}: its input can't be read any more ({why})")
            elif sha256 != row["sha256"]:
                sizes = f"{row['bytes']} bytes then, {size} now" if size != row["bytes"] else f"{size} bytes"
                self.found.lost_inputs.append(f"{name}: its input has changed since ({sizes}, another sha256)")
            elif reason is not None:
                self.found.faults.append(f"{name}: its input, which is the same, would be rejected now: {reason}")
            else:
                same.append(position)
        if same:
            selected = torch.tensor(same)
            self._compare(split, rows.take(pa.array(same)), {name: value[selected] for name, value in outputs.items()})

    def _compare(self, split: str, rows: pa.Table, computed: dict[str, Tensor]) -> None:
        self.found.rows += len(rows)
        for name, values in computed.items():
            stored = self.stored.gather(name, rows)
            differences = _differences(values.cpu().to(stored.dtype), stored)
            self._largest = max(self._largest, differences.max().item())
            self.found.largest_difference = self._largest if math.isfinite(self._largest) else None
            for position in (differences > self.found.allowed).nonzero().flatten().tolist():
                row = rows.slice(position, 1).to_pylist()[0]
                self.found.faults.append(
                    f"{_name(split, row['key'])}: {name!r}, row {row['row']} of {row['shard']}, is not what its input "
                    f"gives: a number differs by {differences[position]:.3g} of the row's largest "
                    f"(allowed {self.found.allowed:g})"
                )


def _differences(computed: Tensor, stored: Tensor) -> Tensor:
    """Returns [N] float64: each row's largest difference, relative to the stored row's largest absolute value."""
    a, b = (rows.reshape(len(rows), -1).double() for rows in (computed, stored))
    same = (a == b) | (a.isnan() & b.isnan())
    difference = torch.where(same, 0.0, (a - b).abs()).amax(dim=1)
    largest = torch.where(b.isfinite(), b.abs(), 0.0).amax(dim=1)
    relative = torch.where(difference == 0, 0.0, difference / largest)
    return relative.nan_to_num(nan=math.inf, posinf=math.inf)


def _name(split: str, key: str) -> str:
    return f"split {split!r}, key {key!r}"
