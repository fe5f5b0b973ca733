"""Reads a store: `embedx.open(path)`.

Shapes: N rows, D embedding dimension, T tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from embedx.errors import StoreError, unknown
from embedx.names import EMBEDDINGS
from embedx.paths import StorePath
from embedx.store.format.fetched import Fetched
from embedx.store.format.index import UnitEntry, read_column_names, read_index
from embedx.store.format.manifest import Manifest
from embedx.store.format.many_at_once import SHARDS_AT_ONCE, TABLES_AT_ONCE, many_at_once
from embedx.store.format.open_folder import open_folder
from embedx.store.format.shards import ShardEntry
from embedx.store.reading.attempts import start_anew
from embedx.store.reading.embeddings import Embeddings, Framework, Shard, as_arrays
from embedx.store.reading.groups import Group, group_of
from embedx.store.reading.index_rows import concat_rows, read_units

if TYPE_CHECKING:  # torch is imported where tensors are read; the manifest and the index tables need none
    from embedx.store.reading.torch_dataset import StoreDataset


class Store:
    """A store on disk, as far as its units are committed; `complete` tells whether all of them are.

    It is the store that stood at the path when it was opened. When an update puts another one in its place, what is
    read from then on raises a StoreReplacedError, and what has been read stays. A copy in another process, such as a
    DataLoader's, is of the same store, or raises that too.
    """

    def __init__(self, path: str | StorePath) -> None:
        self.folder = open_folder(path)
        self.path = self.folder.path
        self.manifest = Manifest.read(self.folder)

    @classmethod
    def open(cls, path: str | StorePath) -> Self:
        """Opens a store; it is closed by `close`, by a `with` statement, or when it is no longer used.

        Raises:
            StoreError: If `path` is not a store.
        """
        return start_anew(lambda: cls(path))

    def close(self) -> None:
        """Closes the store: nothing more can be read from it, and what has been read stays."""
        self.folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the open folder, so that the store can be sent to another process."""
        return {**vars(self), "folder": (str(self.path.absolute()), self.folder.manifest_sha256)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Opens the same store in another process.

        Raises:
            StoreReplacedError: If another one is there now.
        """
        vars(self).update(state)
        path, manifest_sha256 = state["folder"]
        self.folder = open_folder(path)
        self.folder.manifest_sha256 = manifest_sha256
        if not self.folder.is_current():
            raise self.folder.fault("")

    def __repr__(self) -> str:
        rows = Counter[str]()
        for unit in self.units.values():
            rows[unit.split] += unit.rows
        splits = ", ".join(f"{split}: {rows[split]:,} rows" for split in self.splits)
        return f"Store({str(self.path)!r}, {'complete' if self.complete else 'not complete'}, {splits or 'no rows'})"

    def __len__(self) -> int:
        """Returns the number of embeddings, over all splits."""
        return sum(unit.rows for unit in self.units.values())

    @property
    def complete(self) -> bool:
        """True if every input of the plan is in the store."""
        return self.manifest.complete

    @property
    def recipe(self) -> dict[str, Any]:
        """All that determines an embedding's value, as JSON."""
        return self.manifest.recipe.to_json()

    @cached_property
    def units(self) -> dict[str, UnitEntry]:
        """The committed units, by the path of their index table in the store, in order."""
        return read_units(self.folder, self.manifest)

    @property
    def fetched(self) -> Fetched | None:
        """The bytes and the requests of a store in a bucket so far; None for a store on this machine's disks."""
        return self.folder.fetched

    @property
    def splits(self) -> list[str]:
        """The names of the splits, in the order in which they were given."""
        found = dict.fromkeys(entry.split for entry in self.units.values())
        return list(dict.fromkeys([*self.manifest.plan.splits, *found]))

    def groups(self, split: str) -> list[Group]:
        """Returns a split's groups, in order.

        NO_GROUP stands for rows without a group; a store without a group key has no groups.
        """
        if not self.manifest.plan.grouped:
            return []
        return list(dict.fromkeys(group_of(entry) for _, entry in self._shards(split, None)))

    def index(self, split: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Reads the index tables of a split as one table, with one row per input, in plan order.

        Args:
            split: The name of the split; None for all splits.
            columns: The names of the columns to read; None for all.

        Raises:
            StoreError: If there is no such split, or an index table is damaged.
        """
        self._require_split(split)
        paths = [path for path, unit in self.units.items() if split in (None, unit.split)]
        return concat_rows(list(self.read_tables(paths, columns)))

    def read_tables(self, paths: Iterable[str], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yields the index table at each path as `read_table` reads it; several are fetched at once from a bucket."""
        return many_at_once(self.folder, lambda path: self.read_table(path, columns), paths, TABLES_AT_ONCE)

    def read_table(self, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Reads the index table at a path in the store, or some of its columns; a complete store's by its sha256.

        Raises:
            StoreError: If it is damaged.
        """
        return read_index(self.folder / path, columns, sha256=self.manifest.index.get(path))

    def column_names(self, splits: Sequence[str] | None = None) -> list[str]:
        """Reads the names of the index tables' columns, in order, from the files' footers alone.

        Args:
            splits: The names of the splits whose tables have them; None for all splits.

        Raises:
            StoreError: If an index table is damaged.
        """
        tables = [self.folder / path for path, unit in self.units.items() if splits is None or unit.split in splits]
        names = many_at_once(self.folder, read_column_names, tables, TABLES_AT_ONCE)
        return list(dict.fromkeys(name for of_table in names for name in of_table))

    def load(
        self,
        split: str,
        group: Group = None,
        *,
        framework: Framework = "numpy",
        name: str = EMBEDDINGS,
        check: bool = True,
    ) -> Embeddings:
        """Reads the rows of a split, or of one of its groups, in plan order.

        Args:
            split: The name of the split.
            group: The only group to read; NO_GROUP for the rows without one, None for all rows.
            framework: The kind of arrays, `numpy` or `torch`. Numpy has no bfloat16 and float8; those numbers become
                float32 there.
            name: The name of the tensor: `embeddings`, or an extra layer's.
            check: Whether each shard's sha256 is checked, by a thread per core, before its rows are used.

        Returns:
            The embeddings [N, D] with their keys, targets and groups.

        Raises:
            StoreReplacedError: If another store has taken this one's place.
            StoreError: If there is no such split, group or tensor, or a file is damaged.
        """
        self._require_split(split)
        if group is not None and group not in (groups := self.groups(split)):
            names = [name for name in groups if isinstance(name, str)]
            raise StoreError(unknown("group", str(group), names, hint=f"in split {split!r} of {self.path}"))
        wanted: dict[str, list[str]] = {}
        for path, unit in self.units.items():
            shards = [shard.path for shard in unit.shards if group in (None, group_of(shard))]
            if unit.split == split and shards:
                wanted[path] = shards
        tables: list[pa.Table] = []
        for path, table in zip(wanted, self.read_tables(wanted), strict=True):
            tables.append(table.filter(pc.is_in(table["shard"], pa.array(wanted[path]))))
            if pc.count_distinct(tables[-1]["shard"]).as_py() < len(wanted[path]):
                raise self.folder.fault(f"{path} and its shards disagree; run `embedx verify {self.path}`")
        if not tables:
            count = sum(unit.inputs for unit in self.units.values() if unit.split == split)
            raise StoreError(f"split {split!r} of {self.path} has no rows, as its {count} inputs gave none")
        from embedx.store.reading.stored_rows import StoredRows

        rows = concat_rows(tables)
        stored = StoredRows(self.folder, self.units.values(), check=check)
        return Embeddings(as_arrays(framework, stored.gather(name, rows, whole_shards=True)), rows)

    def rows(
        self, split: str, keys: Sequence[str], *, framework: Framework = "numpy", name: str = EMBEDDINGS
    ) -> Embeddings:
        """Reads the rows of these keys alone, in their order; the shards are mapped, and their sha256 not checked.

        Args:
            split: The name of the split.
            keys: The N keys, each of which is in the split, or one.
            framework: The kind of arrays, as in `load`.
            name: The name of the tensor, as in `load`.

        Returns:
            The embeddings [N, D] with their rows of the index tables.

        Raises:
            StoreError: If there is no such split, key or tensor, a key's input has no row, or a file is damaged.
        """
        keys = [keys] if isinstance(keys, str) else keys
        index = self.index(split)
        positions = pc.index_in(pa.array(keys, pa.string()), value_set=index["key"].combine_chunks())
        found = index.take(positions)
        if missing := [key for key, row in zip(keys, found["row"].to_pylist(), strict=True) if row is None]:
            row = found.filter(pc.is_null(found["row"])).slice(0, 1).to_pylist()[0]
            why = f"was {row['status']}: {row['reason']}" if row["status"] else "is not there"
            raise StoreError(f"split {split!r} of {self.path}: the key {missing[0]!r} {why}")
        from embedx.store.reading.stored_rows import StoredRows

        return Embeddings(as_arrays(framework, StoredRows(self.folder, self.units.values()).gather(name, found)), found)

    def dataset(self, split: str, *, name: str = EMBEDDINGS) -> StoreDataset:
        """Returns a split as a torch Dataset of (embedding [D], target) that reads the shards where it is touched.

        The index tables are checked by their sha256, and the shards are not: `load` or `embedx verify` do that.

        Raises:
            StoreError: If there is no such split, or an index table is damaged.
        """
        self._require_split(split)
        from embedx.store.reading.torch_dataset import StoreDataset

        return StoreDataset(self, split, name)

    def to_pandas(self, split: str | None = None) -> Any:
        """Reads the index tables of a split, or of all, as a data frame with one row per input; needs pandas."""
        return self.index(split).to_pandas()

    def iter_shards(
        self, split: str | None = None, group: Group = None, *, framework: Framework = "numpy", check: bool = False
    ) -> Iterator[Shard]:
        """Yields the shards one by one, with their files mapped instead of read.

        Args:
            split: The name of the split; None for all splits.
            group: The only group whose shards are wanted; NO_GROUP for the rows without one, None for all.
            framework: The kind of arrays, `numpy` or `torch`.
            check: Whether each shard is read once, and its sha256 checked, before it is yielded.

        Raises:
            StoreReplacedError: If another store has taken this one's place.
            StoreError: If there is no such split, or a file is damaged.
        """
        self._require_split(split)
        from embedx.store.reading.stored_rows import open_named_shard

        def read(named: tuple[UnitEntry, ShardEntry]) -> Shard:
            unit, entry = named
            with open_named_shard(self.folder, unit, entry, check=check) as file:
                tensors = {name: as_arrays(framework, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            return Shard(self.path / entry.path, unit.split, entry.group, tensors)

        shards = list(self._shards(split, group))
        self.folder.learn_sizes(entry.path for _, entry in shards)
        yield from many_at_once(self.folder, read, shards, SHARDS_AT_ONCE)

    def _shards(self, split: str | None, group: Group) -> Iterator[tuple[UnitEntry, ShardEntry]]:
        for unit in self.units.values():
            if split in (None, unit.split):
                for entry in unit.shards:
                    if group in (None, group_of(entry)):
                        yield unit, entry

    def _require_split(self, split: str | None) -> None:
        if split is not None and split not in self.splits:
            raise StoreError(unknown("split", split, self.splits, hint=f"in {self.path}"))
