"""A split of a store as a torch Dataset."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor
from torch.utils.data import Dataset

from embedx.store.format.index import OK
from embedx.store.reading.stored_rows import StoredRows

if TYPE_CHECKING:
    from embedx.store.reading.reader import Store


class StoreDataset(Dataset[tuple[Tensor, int]]):
    """The rows of a split in plan order, each as (embedding [D], target); the target is -1 where it is unknown.

    Shards are mapped, and read where they are touched, so that a split may be larger than the memory. A DataLoader's
    workers each map them anew; where another store has taken this one's place, they raise a StoreReplacedError.

    Args:
        store: The store with the rows.
        split: The name of the split.
        name: The name of the tensor: `embeddings`, or an extra layer's.
    """

    def __init__(self, store: Store, split: str, name: str) -> None:
        self.name = name
        table = store.index(split)
        self.table: pa.Table = table.filter(pc.equal(table["status"], OK))
        """The rows of the index tables, with all columns: `table["key"][i]` is the key of item i."""
        self.targets = self.table["target"].fill_null(-1).to_numpy().astype(np.int64)
        """The targets [N]."""
        self._store = store

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        """Returns one row."""
        if not -len(self) <= item < len(self):
            raise IndexError(f"there is no row {item}; the split has {len(self)}")
        return self.__getitems__([item % len(self)])[0]

    def __getitems__(self, items: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Returns several rows, as a DataLoader asks for the batches of one."""
        rows = self._rows.gather(self.name, self.table.select(["shard", "row"]).take(pa.array(items)))
        return list(zip(rows, self.targets[items].tolist(), strict=True))

    @cached_property
    def _rows(self) -> StoredRows:
        return StoredRows(self._store.folder, self._store.units.values())

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what is mapped, so that it can be sent to a worker process."""
        return {name: value for name, value in vars(self).items() if name != "_rows"}
