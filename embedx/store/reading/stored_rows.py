"""Reads rows of a store's tensors by their place, in any order; shards are mapped, and read where they are touched."""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from embedx.errors import StoreError, unknown
from embedx.names import INDEX, TARGETS
from embedx.store.format.index import UnitEntry
from embedx.store.format.many_at_once import SHARDS_AT_ONCE, many_at_once
from embedx.store.format.shard_parts import WantedRows
from embedx.store.format.shards import FORMAT, ShardEntry, ShardHeader, form, has_inputs, open_shard, read_header
from embedx.store.format.store_folder import StoreFolder
from embedx.system.machine import cores

Rows: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int64]]

_MAPPED = 64
"""The number of tensors that are kept mapped."""
_MAPPED_COPIES = 2
"""The same of a store in a bucket, as a copy takes room on the disk as long as it is mapped."""
_NO_ROWS = WantedRows("", np.empty(0, np.int64))


class StoredRows:
    """The rows of the shards of a store's units, N of them at a time.

    Args:
        folder: The store's folder.
        units: The units whose rows are wanted.
        check: Whether each shard's sha256 is checked before its first row is used; it takes as long as reading it.
    """

    def __init__(self, folder: StoreFolder, units: Iterable[UnitEntry], *, check: bool = False) -> None:
        self.folder = folder
        self._shards = {entry.path: (unit, entry) for unit in units for entry in unit.shards}
        self._headers: dict[str, ShardHeader] = {}
        """The headers of the shards that were mapped."""
        self._unchecked = set(self._shards) if check else set()
        this = weakref.proxy(self)  # so that the folder is closed once this is no longer used
        most = _MAPPED_COPIES if folder.is_remote else _MAPPED
        self._mapped_tensor = lru_cache(maxsize=most)(lambda path, name: this._map(path, name))

    @cached_property
    def names(self) -> list[str]:
        """The names of the tensors, but for `index` and `targets`; empty if the store has no rows."""
        return next((self.names_in(path) for path in self._shards), [])

    def names_in(self, path: str) -> list[str]:
        """Returns the names of a shard's tensors, but for `index` and `targets`."""
        if path not in self._shards:
            raise self._disagreement(path)
        with open_named_shard(self.folder, *self._shards[path], wanted=_NO_ROWS) as shard:
            return [name for name in shard.keys() if name not in (INDEX, TARGETS)]  # noqa: SIM118

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of one row of a tensor, as the first shard has it."""
        return self.shape_in(next(iter(self._shards)), name)

    def shape_in(self, path: str, name: str) -> tuple[int, ...]:
        """Returns the shape of one row of a tensor, as a shard has it; of one in a bucket, by its header alone."""
        if not self.folder.is_remote:
            return tuple(self.tensor(path, name).shape[1:])
        with self._open(path, name, check=False, wanted=_NO_ROWS) as shard:
            return tuple(shard.get_slice(name).get_shape()[1:])

    def tensor(self, path: str, name: str) -> Tensor:
        """Returns a tensor of a shard [N, ...], mapped; the shard is checked first if that is wanted."""
        found: Tensor = self._mapped_tensor(path, name)
        return found

    def gather(self, name: str, places: pa.Table, *, whole_shards: bool = False) -> Tensor:
        """Reads rows [N, ...] of a tensor in the stored type.

        Args:
            name: `embeddings`, or an extra layer's name.
            places: The N rows' places, in the columns `shard` and `row` of the index tables.
            whole_shards: True if `places` has to name each row of its shards exactly once, with the inputs in the
                columns `index` and `sha256`.

        Raises:
            StoreError: If an index table names rows that are not there, or a file is damaged.
        """
        shards = places["shard"].combine_chunks().dictionary_encode()
        if not len(shards) or shards.null_count:
            raise self.folder.fault(f"{self.folder.path}: no shard to read from; run `embedx verify` on it")
        codes, rows = shards.indices.to_numpy(), places["row"].fill_null(-1).to_numpy()
        order = np.argsort(codes, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
        paths = shards.dictionary.to_pylist()
        tensors = self.tensors(paths, name, None if whole_shards else [rows[positions] for positions in groups])
        result = None
        for path, values, positions in zip(paths, tensors, groups, strict=True):
            if result is None:
                if whole_shards and values[:1].nbytes * len(places) > sum(map(self._size, paths)):
                    raise self._disagreement(path)
                result = values.new_empty(len(places), *values.shape[1:])
            own = rows[positions]
            if own.min() < 0 or own.max() >= len(values):
                raise self._disagreement(path)
            if whole_shards:
                in_shard = places.select(["index", "sha256"]).take(pa.array(positions[np.argsort(own, kind="stable")]))
                is_whole = np.array_equal(np.sort(own), np.arange(len(values)))
                if not (is_whole and has_inputs(self._headers[path], in_shard)):
                    raise self._disagreement(path)
            if (values.dtype, values.shape[1:]) != (result.dtype, result.shape[1:]):
                raise self.folder.fault(
                    f"{self.folder.path}: {name!r} is here {form(result)} and there {form(values)}; "
                    "run `embedx verify` on it"
                )
            result[torch.from_numpy(positions)] = values[torch.from_numpy(own)]
        assert result is not None  # as there is a place
        return result

    def tensors(self, paths: list[str], name: str, rows: Sequence[Rows] | None = None) -> Iterator[Tensor]:
        """Yields the tensor [N, ...] of each shard; threads check the files ahead, and fetch them from a bucket.

        Args:
            paths: The paths of the shards in the store.
            name: `embeddings`, or an extra layer's name.
            rows: The rows of each shard that will be touched, which alone are fetched if the shard is not checked; None
                for all of them.
        """
        if self.folder.is_remote:
            self.folder.learn_sizes(path for path in paths if path in self._shards)
            parts = zip(paths, rows or itertools.repeat(None, len(paths)), strict=True)
            yield from many_at_once(self.folder, lambda part: self._part(*part, name), parts, SHARDS_AT_ONCE)
            return
        if self._unchecked.isdisjoint(paths):
            yield from (self.tensor(path, name) for path in paths)
            return
        ahead: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(cores()) as threads:
            for path in paths:
                ahead.append(threads.submit(self.tensor, path, name))
                if len(ahead) > cores():
                    yield ahead.popleft().result()
            yield from (future.result() for future in ahead)

    def _part(self, path: str, rows: Rows | None, name: str) -> Tensor:
        """Returns a mapped tensor of a shard in a bucket, of which at least these rows are there."""
        if rows is None or path in self._unchecked:
            return self.tensor(path, name)
        with self._open(path, name, check=False, wanted=WantedRows(name, rows)) as shard:
            tensor: Tensor = shard.get_tensor(name)
            return tensor

    def _map(self, path: str, name: str) -> Tensor:
        with self._open(path, name, check=path in self._unchecked) as shard:
            self._unchecked.discard(path)
            tensor: Tensor = shard.get_tensor(name)
            return tensor

    def _open(self, path: str, name: str, *, check: bool, wanted: WantedRows | None = None) -> Any:
        """Maps a shard as `open_named_shard` does, if it has a tensor of this name, and keeps its header."""
        if path not in self._shards:  # nothing but a unit's own shards is opened, whatever a row says
            raise self._disagreement(path)
        shard: Any = open_named_shard(self.folder, *self._shards[path], check=check, wanted=wanted)
        self._headers[path] = read_header(shard)
        if name not in (names := shard.keys()):
            raise StoreError(unknown("tensor", name, names, hint=f"in {path}"))
        return shard

    def _size(self, path: str) -> int:
        return (self.folder / path).size() if path in self._shards else 0

    def _disagreement(self, path: str) -> StoreError:
        root = self.folder.path
        return self.folder.fault(f"{path} and its index table disagree; run `embedx verify {root}`")


def open_named_shard(
    folder: StoreFolder,
    unit: UnitEntry,
    entry: ShardEntry,
    *,
    check: bool = False,
    wanted: WantedRows | None = None,
) -> AbstractContextManager[Any]:
    """Maps a shard, and checks that it is the one that its unit names, by its header and maybe by its sha256.

    `wanted` has the rows that will be touched, as for `open_shard`.
    """
    shard = open_shard(folder / entry.path, sha256=entry.sha256 if check else None, wanted=wanted)
    header = read_header(shard)._replace(inputs_sha256=None)
    if header != ShardHeader(FORMAT, unit.split, entry.group, unit.unit, unit.recipe):
        raise folder.fault(
            f"{entry.path} is not the shard that its index table names; run `embedx verify {folder.path}`"
        )
    return shard
