"""The inputs in a folder behind a URL, in a fixed order."""

from __future__ import annotations

import fnmatch
import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from embedx.data.sources import folder_files
from embedx.data.sources.folder_files import FolderSlice, Names, batched
from embedx.data.sources.selection import LeftOut, Selection
from embedx.names import LOCK

if TYPE_CHECKING:
    from embedx.system.links import ListedFile

_LOCK = os.fsencode(LOCK)
_BETWEEN = b"\0"
"""The sign between the names of a path: no name has it, and paths are sorted by it as by their names."""
_SCHEMA = pa.schema(
    [("path", pa.large_binary()), ("url", pa.large_binary()), ("size", pa.int64()), ("mtime_ns", pa.int64())]
)


class _File(NamedTuple):
    """A file of a listing."""

    names: Names
    """The names on its path."""
    url: bytes
    size: int | None
    mtime_ns: int | None


class RemoteFolder:
    """A folder behind a URL, which holds these files.

    Args:
        files: The files in it and below, in the columns of a listing, sorted.
        selection: The choice of inputs.
        above: The names on its path below the source.
    """

    def __init__(self, files: pa.Table, selection: Selection, above: Names = ()) -> None:
        self._selection = selection
        self._above = above
        self._everything = files
        stores = {names[:-1] for names in self._paths() if names[-1] == _LOCK and len(names) > 1}
        self._stores = sorted(stores)

    @classmethod
    def of(cls, files: Iterable[ListedFile], selection: Selection) -> RemoteFolder:
        """Returns the folder that holds the files of a listing, of which there may be millions."""
        parts = []
        for some in batched(iter(files), folder_files.CHUNK):
            paths = [os.fsencode(file.path).replace(b"/", _BETWEEN) for file in some]
            urls = [os.fsencode(file.url) for file in some]
            sizes, times = [file.size for file in some], [file.mtime_ns for file in some]
            parts.append(pa.record_batch([paths, urls, sizes, times], schema=_SCHEMA))
        table = pa.Table.from_batches(parts, _SCHEMA)
        return cls(table.take(pc.sort_indices(table["path"])).combine_chunks(), selection)

    def enter(self, name: bytes) -> RemoteFolder:
        """Returns the folder of this name in it."""
        start, stop = (self._place_of((*self._above, name), behind) for behind in (_BETWEEN, b"\1"))
        return RemoteFolder(self._everything.slice(start, stop - start), self._selection, (*self._above, name))

    def choosing(self, selection: Selection) -> RemoteFolder:
        """Returns the folder with another choice of inputs."""
        return RemoteFolder(self._everything, selection, self._above)

    def has(self, pattern: str) -> bool:
        """Tells whether a file of the whole listing, hidden or not, matches a pattern."""
        return any(fnmatch.fnmatch(os.fsdecode(b"/".join(names)), pattern) for names in self._paths())

    def folders(self, left_out: LeftOut) -> list[bytes]:
        """Returns the names of the folders in it that may hold inputs, sorted, and accounts for the others."""
        found = sorted({file.names[0] for file in self._files() if len(file.names) > 1})
        return [name for name in found if self._selection.takes_folder((*self._above, name), left_out)]

    def count_inputs(self, left_out: LeftOut) -> int:
        """Counts the inputs in it, not in the folders below, and accounts for the other files."""
        names = (file.names[0] for file in self._files() if len(file.names) == 1)
        return sum(self._selection.takes_file(self._above, name, None, left_out) for name in names)

    def holds_inputs(self) -> bool:
        """Tells whether there is an input in it, or below."""
        return next(self.slices(LeftOut()), None) is not None

    def slices(self, left_out: LeftOut) -> Iterator[FolderSlice]:
        """Yields the inputs in it and below, sorted by the parts of their paths, and accounts for the other files."""
        for store in self._stores:
            left_out.add_store((*self._above, *store))
        taken: dict[Names, bool] = {(): True}
        for folder, files in groupby(self._files(), key=lambda file: file.names[:-1]):
            for depth in range(len(folder)):
                if folder[: depth + 1] not in taken:
                    here = (*self._above, *folder[: depth + 1])
                    taken[folder[: depth + 1]] = taken[folder[:depth]] and self._selection.takes_folder(here, left_out)
            if not taken[folder]:
                continue
            here = (*self._above, *folder)
            inputs = (file for file in files if self._selection.takes_file(here, file.names[-1], None, left_out))
            for some in batched(inputs, folder_files.CHUNK):
                names, urls = [file.names[-1] for file in some], [file.url for file in some]
                yield FolderSlice(folder, names, urls, [(file.size, file.mtime_ns) for file in some])

    def sizes_and_times(self, slices: Sequence[FolderSlice]) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """Returns the sizes and times that the listing has."""
        facts = [fact for part in slices for fact in part.facts]
        sizes, times = (pa.chunked_array([[fact[which] for fact in facts]], pa.int64()) for which in (0, 1))
        return sizes, times

    def _paths(self) -> Iterator[Names]:
        """Yields the names on the path of each file below this folder, in order."""
        for batch in self._everything.select(["path"]).to_batches(folder_files.CHUNK):
            for path in batch["path"].to_pylist():
                yield tuple(path.split(_BETWEEN))[len(self._above) :]

    def _files(self) -> Iterator[_File]:
        """Yields the files that are neither hidden nor in a store, in order, of which few are in memory as objects."""
        stores = set(self._stores)
        for batch in self._everything.to_batches(folder_files.CHUNK):
            for path, *facts in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                names = tuple(path.split(_BETWEEN))[len(self._above) :]
                is_stored = stores and any(names[:depth] in stores for depth in range(1, len(names)))
                if not names[-1].startswith(b".") and not is_stored:
                    yield _File(names, *facts)

    def _place_of(self, names: Names, behind: bytes) -> int:
        """Returns the number of files that come before a path of these names and what stands behind it."""
        paths = self._everything["path"]
        return bisect_left(range(len(paths)), _BETWEEN.join(names) + behind, key=lambda row: paths[row].as_py())
