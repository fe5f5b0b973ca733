"""Rows of a store's tensors by their place, in any order: each shard's file is mapped, and read where it is touched."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from embedx.errors import StoreError, unknown
from embedx.names import INDEX, TARGETS
from embedx.store.format.index import UnitEntry
from embedx.store.format.no_follow import regular_file
from embedx.store.format.shards import open_shard

_MAPPED = 64
"""Tensors that are kept mapped."""


class StoredRows:
    """The rows of a store's shards, N of them at a time.

    Args:
        root: The store.
        units: Those whose shards are read.
    """

    def __init__(self, root: Path, units: Iterable[UnitEntry]) -> None:
        self.root = root
        self._shards = list(dict.fromkeys(entry.path for unit in units for entry in unit.shards))
        self._tensor = lru_cache(maxsize=_MAPPED)(self._map)

    @cached_property
    def names(self) -> list[str]:
        """What the store has of each row: `embeddings`, and the extra layers; empty if it has no rows."""
        for path in self._shards:
            with open_shard(regular_file(self.root, path)) as shard:
                return [name for name in shard.keys() if name not in (INDEX, TARGETS)]  # noqa: SIM118
        return []

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one row of a tensor, as the first shard has it.

        Raises:
            StoreError: If there is no such tensor.
        """
        return tuple(self._tensor(next(iter(self._shards)), name).shape[1:])

    def gather(self, name: str, places: pa.Table) -> Tensor:
        """Reads some rows of a tensor.

        Args:
            name: `embeddings`, or an extra layer's name.
            places: N rows of the index tables; `shard` and `row` say where each one's numbers are.

        Returns:
            [N, ...] in the stored type.

        Raises:
            StoreError: If an index table names what is not there, or a file is damaged.
        """
        shards = places["shard"].combine_chunks().dictionary_encode()
        codes, rows = shards.indices.to_numpy(zero_copy_only=False), places["row"].to_numpy()
        result: Tensor | None = None
        for code, path in enumerate(shards.dictionary.to_pylist()):
            values = self._tensor(path, name)
            positions = np.flatnonzero(codes == code)
            if not (rows[positions].min() >= 0 and rows[positions].max() < len(values)):
                raise self._disagreement(path)
            if result is None:
                result = values.new_empty(len(places), *values.shape[1:])
            if (values.dtype, values.shape[1:]) != (result.dtype, result.shape[1:]):
                raise self._disagreement(path)
            result[torch.from_numpy(positions)] = values[torch.from_numpy(rows[positions])]
        if result is None or shards.null_count:
            raise StoreError(f"{self.root}: no shard to read from; run `embedx verify` on it")
        return result

    def _map(self, path: str, name: str) -> Tensor:
        if path not in self._shards:  # nothing but a unit's own shards is opened, whatever a row says
            raise self._disagreement(path)
        with open_shard(regular_file(self.root, path)) as shard:
            if name not in shard.keys():  # noqa: SIM118  (not a mapping)
                raise StoreError(unknown("tensor", name, shard.keys(), hint=f"in {path}"))
            tensor: Tensor = shard.get_tensor(name)
            return tensor

    def _disagreement(self, path: str) -> StoreError:
        return StoreError(f"{path} and its index table disagree; run `embedx verify {self.root}`")
