"""Rows of a store in memory, each with its input.

Shapes: N rows, D embedding dimension, T tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedx.errors import ConfigError
from embedx.paths import StorePath
from embedx.store.format.shards import dtype_name

if TYPE_CHECKING:
    from torch import Tensor

Framework = Literal["numpy", "torch"]

_NOT_IN_NUMPY = ("bfloat16", "float8_e4m3fn", "float8_e5m2")


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Rows of a store, each with the input it comes from."""

    embeddings: Any
    """[N, D] or [N, T, D], as a numpy array or a torch tensor."""
    table: pa.Table
    """The N rows of the index tables, in the same order, with all columns."""

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.embeddings.shape[1:]))
        return f"Embeddings({len(self):,} rows of {shape} {str(self.embeddings.dtype).removeprefix('torch.')})"

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, key: str) -> Any: ...
    @overload
    def __getitem__(self, key: Sequence[str]) -> Embeddings: ...
    def __getitem__(self, key: str | Sequence[str]) -> Any:
        """Returns the embedding [D] of one key, or the rows of several, in their order.

        Raises:
            KeyError: If there is no row of this key.
        """
        keys = [key] if isinstance(key, str) else list(key)
        found = pc.index_in(pa.array(keys, pa.string()), value_set=self.table["key"].combine_chunks()).to_pylist()
        if None in found:
            raise KeyError(keys[found.index(None)])
        return (
            self.embeddings[found[0]]
            if isinstance(key, str)
            else Embeddings(self.embeddings[found], self.table.take(found))
        )

    @property
    def keys(self) -> list[str]:
        """Each row's key, unique in its split."""
        return list(self.table["key"].to_pylist())

    @property
    def groups(self) -> list[str | None]:
        """Each row's group; None where the store has no group key."""
        return list(self.table["group"].to_pylist())

    @cached_property
    def targets(self) -> Any:
        """The targets [N] int64, -1 where unknown, of the same kind as `embeddings`; None if no row has a target."""
        column = self.table["target"]
        if column.null_count == len(column):
            return None
        values = column.fill_null(-1).to_numpy()
        if isinstance(self.embeddings, np.ndarray):
            return values
        import torch

        return torch.from_numpy(values.copy())

    def to_pandas(self) -> Any:
        """Returns a data frame of the index tables' columns and a column `embedding` of arrays [D]; needs pandas."""
        frame = self.table.to_pandas()
        values = self.embeddings if isinstance(self.embeddings, np.ndarray) else self.embeddings.numpy()
        return frame.assign(embedding=list(values))


@dataclasses.dataclass(frozen=True)
class Shard:
    """One shard, whose file is mapped: numbers are read when they are touched."""

    path: StorePath
    split: str
    group: str | None
    tensors: dict[str, Any]
    """`embeddings` [N, D], `index` [N] int64, `targets` [N] int64 where known, one entry per extra layer."""


def as_arrays(framework: Framework, tensor: Tensor) -> Any:
    """Returns a tensor as an array of this kind; raises a ConfigError if it is none."""
    if framework == "torch":
        return tensor
    if framework != "numpy":
        raise ConfigError(f"framework is {framework!r}; give 'numpy' or 'torch'")
    return (tensor.float() if dtype_name(tensor.dtype) in _NOT_IN_NUMPY else tensor).numpy()
