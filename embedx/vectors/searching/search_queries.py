"""The queries of a search as vectors: those of rows of the store, of files, and of arrays.

Shapes: Q queries, D embedding dimension.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from embedx.errors import ConfigError
from embedx.store.format.index import OK
from embedx.store.reading.reader import Store
from embedx.store.reading.stored_rows import StoredRows
from embedx.vectors.npy_file import read_npy


@dataclasses.dataclass(frozen=True)
class Queries:
    """Queries as vectors, each with a name."""

    names: list[str]
    """[Q] the names: an image's path, or its URL without credentials, a row's `split:key`, a file with the vector's
    number, a text."""
    vectors: Tensor
    """[Q, D] float32, as they are: not scaled."""
    rows: Sequence[tuple[str, str] | None] = ()
    """[Q] the split and key of each query that is a row of the store; None for the others."""
    paths: Sequence[str | None] = ()
    """[Q] the path or URL, as it is read, of each query that is an image in a file; None for the others."""

    def __post_init__(self) -> None:
        """Takes rows and paths that are not given as None."""
        for name in ("rows", "paths"):
            object.__setattr__(self, name, tuple(getattr(self, name) or [None] * len(self.names)))

    def __len__(self) -> int:
        return len(self.names)


def joined(parts: Sequence[Queries], dim: int) -> Queries:
    """Returns the queries of several parts as one.

    Args:
        parts: The parts, in their order.
        dim: The length of the store's vectors, D.

    Raises:
        ConfigError: If there is no query, or a vector is of another length, is all zeros, or has NaN or infinity.
    """
    parts = [part for part in parts if len(part)]
    if not parts:
        raise ConfigError("there is no query; give images, rows of the store, vectors or texts to search for")
    check(parts, dim)
    return Queries(
        [name for part in parts for name in part.names],
        torch.cat([part.vectors for part in parts]),
        [row for part in parts for row in part.rows],
        [path for part in parts for path in part.paths],
    )


def check(parts: Sequence[Queries], dim: int) -> None:
    """Raises one ConfigError that names every query that can't be compared with vectors of the length D."""
    faults = []
    for part in parts:
        if len(part) and part.vectors.shape[1] != dim:
            faults.append(
                f"{part.names[0]} has {part.vectors.shape[1]} numbers, and the store's vectors have {dim}; give "
                "vectors of the store's own backbone and tensor"
            )
            continue
        is_finite = part.vectors.isfinite().all(dim=1).tolist()
        is_zero = (part.vectors == 0).all(dim=1).tolist()
        for name, finite, zero in zip(part.names, is_finite, is_zero, strict=True):
            if not finite or zero:
                fault = "is all zeros" if zero else "has NaN or infinity"
                faults.append(f"{name} {fault}, and so is similar to nothing; leave it out")
    ConfigError.check(faults)


def queries_of_rows(store: Store, rows: Sequence[str], name: str) -> Queries:
    """Reads the vectors of rows of the store, whatever rows are searched.

    Args:
        store: The store to read from.
        rows: The names of the rows, `split:key`; in a store of one split also the key alone.
        name: The name of the tensor.

    Raises:
        ConfigError: If there is no such row, or its input has no vector.
        StoreError: If a file is damaged.
    """
    tables: dict[str, pa.Table] = {}
    places, found, faults = [], [], []
    for row in rows:
        try:
            split, place = _find(store, row, tables)
        except ConfigError as error:
            faults += error.faults
            continue
        places.append(place)
        found.append((split, place["key"][0].as_py()))
    ConfigError.check(faults)
    if not found:
        return Queries([], torch.empty(0, 0))
    stored = StoredRows(store.folder, store.units.values())
    vectors = stored.gather(name, pa.concat_tables(places)).float()
    return Queries([f"{split}:{key}" for split, key in found], vectors, found)


def queries_of_file(path: Path) -> Queries:
    """Reads vectors from a file in numpy's format, [D] or [Q, D] of any float type.

    Raises:
        ConfigError: If the file can't be read, or holds something else.
    """
    return queries_of_array(read_npy(path, "--vector"), f"--vector {path}")


def queries_of_array(array: np.ndarray[Any, Any] | Tensor, name: str) -> Queries:
    """Returns an array of vectors, [D] or [Q, D] of any float type, as queries; several are named by their numbers.

    Raises:
        ConfigError: If it has another shape or type.
    """
    shape, kind = list(array.shape), str(array.dtype).removeprefix("torch.")
    is_float = array.is_floating_point() if isinstance(array, Tensor) else array.dtype.kind == "f"
    if len(shape) not in (1, 2) or 0 in shape or not is_float:
        raise ConfigError(
            f"{name}: has the shape {shape} and the type {kind}; vectors are [D] or [Q, D], of a float type"
        )
    is_one = len(shape) == 1
    if isinstance(array, Tensor):
        vectors = array.detach().cpu().float()
    else:
        with np.errstate(over="ignore"):  # what float32 can't hold becomes infinity, which is told of
            vectors = torch.from_numpy(array.astype(np.float32))
    vectors = vectors.reshape(-1, shape[-1])
    return Queries([name] if is_one else [f"{name}[{place}]" for place in range(len(vectors))], vectors)


def _find(store: Store, row: str, tables: dict[str, pa.Table]) -> tuple[str, pa.Table]:
    """Returns a row's split, and the one line of the index that names it, with its place."""
    options = [(split, row.removeprefix(f"{split}:")) for split in store.splits if row.startswith(f"{split}:")]
    options += [(split, row) for split in store.splits if len(store.splits) == 1]
    if not options:
        raise ConfigError(
            f"--row {row}: names no split; give SPLIT:KEY, and one of these splits: {', '.join(store.splits) or 'none'}"
        )
    for split, key in options:
        if split not in tables:
            tables[split] = store.index(split, ["key", "status", "reason", "shard", "row"])
        place = pc.index(tables[split]["key"], pa.scalar(key, pa.string())).as_py()
        if place >= 0:
            found = tables[split].slice(place, 1)
            if found["status"][0].as_py() != OK:
                status, reason = found["status"][0].as_py(), found["reason"][0].as_py()
                raise ConfigError(f"--row {row}: has no vector, as its input was {status}: {reason}")
            return split, found
    split, key = options[0]
    raise ConfigError(f"--row {row}: there is no key {key!r} in split {split!r} of {store.path}")
