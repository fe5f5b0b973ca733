"""The inputs in a folder, on a disk or behind a URL, in a fixed order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, Protocol, Self, TypeVar

import pyarrow as pa

from embedx.data.sources.base import as_text, sizes_and_times
from embedx.data.sources.selection import LeftOut, Selection
from embedx.errors import ConfigError
from embedx.names import LOCK

CHUNK = 1 << 16
"""The number of inputs per table; a single table of all would take four times the memory while it is built."""
T = TypeVar("T")
_LOCK = os.fsencode(LOCK)
Names = tuple[bytes, ...]
Facts = tuple[int | None, int | None]


class FolderSlice(NamedTuple):
    """Consecutive inputs of one folder, at most CHUNK of them."""

    folder: Names
    """The folder's path below the one that is listed, as a list of names."""
    names: list[bytes]
    paths: list[bytes]
    """The absolute paths, or URLs."""
    facts: list[Facts] = []  # noqa: RUF012  (of a tuple)
    """The sizes and times of the inputs; empty where they are not known from the listing."""


class Folder(Protocol):
    """A folder of a source."""

    def folders(self, left_out: LeftOut) -> list[bytes]:
        """Returns the names of the folders in it that may hold inputs, sorted, and accounts for the others."""
        ...

    def count_inputs(self, left_out: LeftOut) -> int:
        """Counts the inputs in it, not in the folders below, and accounts for the other files."""
        ...

    def holds_inputs(self) -> bool:
        """Tells whether there is an input in it, or below."""
        ...

    def has(self, pattern: str) -> bool:
        """Tells whether a file in it or below, hidden or not, matches a pattern."""
        ...

    def enter(self, name: bytes) -> Self:
        """Returns the folder of this name in it."""
        ...

    def choosing(self, selection: Selection) -> Self:
        """Returns the folder with another choice of inputs."""
        ...

    def slices(self, left_out: LeftOut) -> Iterator[FolderSlice]:
        """Yields the inputs in it and below, sorted by the parts of their paths, and accounts for the other files."""
        ...

    def sizes_and_times(self, slices: Sequence[FolderSlice]) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """Returns the sizes and times of the inputs of slices."""
        ...


class _Place(NamedTuple):
    """A folder that is to be visited."""

    path: bytes
    below: Names
    """The names on its path below the source."""
    ancestors: tuple[tuple[int, int], ...]
    """The devices and inodes of the folders that hold it."""


class LocalFolder:
    """A folder on a disk.

    Links are followed, except those that lead back to a folder that holds them. A store of embedx's below the source
    is left out.

    Args:
        path: Its absolute path.
        selection: The choice of inputs.
        above: The names on its path below the source.
    """

    def __init__(self, path: bytes, selection: Selection, above: Names = ()) -> None:
        self.path = path
        self._selection = selection
        self._above = above

    def sizes_and_times(self, slices: Sequence[FolderSlice]) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """Returns the sizes and times that the inputs of slices have now."""
        return sizes_and_times(
            pa.chunked_array([pa.array([path for part in slices for path in part.paths], pa.binary())])
        )

    def enter(self, name: bytes) -> LocalFolder:
        """Returns the folder of this name in it."""
        return LocalFolder(os.path.join(self.path, name), self._selection, (*self._above, name))

    def choosing(self, selection: Selection) -> LocalFolder:
        """Returns the folder with another choice of inputs."""
        return LocalFolder(self.path, selection, self._above)

    def has(self, pattern: str) -> bool:
        """Tells whether a file in it or below, hidden or not, matches a pattern."""
        return any(Path(os.fsdecode(self.path)).glob(pattern))

    def folders(self, left_out: LeftOut) -> list[bytes]:
        """Returns the names of the folders in it that may hold inputs, sorted, and accounts for the others."""
        folders = (entry.name for entry in self._entries(self.path, (), left_out) if _is_folder(entry))
        return sorted(name for name in folders if self._selection.takes_folder((*self._above, name), left_out))

    def count_inputs(self, left_out: LeftOut) -> int:
        """Counts the inputs in it, not in the folders below, and accounts for the other files."""
        entries = (entry for entry in self._entries(self.path, (), left_out) if not _is_folder(entry))
        return sum(self._selection.takes_file(self._above, entry.name, entry.path, left_out) for entry in entries)

    def holds_inputs(self) -> bool:
        """Tells whether there is an input in it, or below."""
        return any(self._walk(LeftOut(), ordered=False))

    def slices(self, left_out: LeftOut) -> Iterator[FolderSlice]:
        """Yields the inputs in it and below, sorted by the parts of their paths, and accounts for the other files."""
        return self._walk(left_out, ordered=True)

    def _walk(self, left_out: LeftOut, *, ordered: bool) -> Iterator[FolderSlice]:
        """Yields the inputs sorted, or (`ordered=False`) one by one as they are found; folders may be of any depth."""
        under_way = [self._visit(_Place(self.path, (), ()), left_out, ordered=ordered)]
        while under_way:
            if (found := next(under_way[-1], None)) is None:
                under_way.pop()
            elif isinstance(found, FolderSlice):
                yield found
            else:
                under_way.append(self._visit(found, left_out, ordered=ordered))

    def _visit(self, place: _Place, left_out: LeftOut, *, ordered: bool) -> Iterator[FolderSlice | _Place]:
        """Yields the inputs in one folder, and the folders in it that are to be visited."""
        folder, below, ancestors = place
        identity = attrgetter("st_dev", "st_ino")(_listed(folder, os.stat))
        if identity in ancestors:
            return
        entries = self._entries(folder, below, left_out)
        if ordered:
            entries.sort(key=attrgetter("name"))
        takes, here = self._selection.takes_file, (*self._above, *below)
        for are_folders, run in groupby(entries, _is_folder):
            if not are_folders:
                inputs = (entry for entry in run if takes(here, entry.name, entry.path, left_out))
                for some in batched(inputs, CHUNK if ordered else 1):
                    yield FolderSlice(below, [entry.name for entry in some], [entry.path for entry in some])
                continue
            for entry in run:
                if self._selection.takes_folder((*here, entry.name), left_out):
                    yield _Place(entry.path, (*below, entry.name), (*ancestors, identity))

    def _entries(self, folder: bytes, below: Names, left_out: LeftOut) -> list[os.DirEntry[bytes]]:
        """Returns what is in a folder and not hidden; nothing of a store."""
        entries = list(_listed(folder, os.scandir))
        visible = [entry for entry in entries if not entry.name.startswith(b".")]
        if len(visible) == len(entries) or not any(entry.name == _LOCK for entry in entries):
            return visible
        names = (*self._above, *below)
        self._selection.check_source_is_no_store(folder) if not names else left_out.add_store(names)
        return [] if names else visible


def in_chunks(slices: Iterable[FolderSlice]) -> Iterator[list[FolderSlice]]:
    """Yields lists of slices that hold CHUNK inputs together, or up to twice as many."""
    chunk: list[FolderSlice] = []
    count = 0
    for part in slices:
        chunk.append(part)
        count += len(part.names)
        if count >= CHUNK:
            yield chunk
            chunk, count = [], 0
    if chunk:
        yield chunk


def _listed(folder: bytes, read: Callable[[bytes], T]) -> T:
    try:
        return read(folder)
    except OSError as error:
        raise ConfigError(
            f"{as_text(folder)}: can't be listed ({error.strerror}); make it readable, leave it out by --exclude, or "
            "name other folders"
        ) from error


def batched(inputs: Iterator[T], size: int) -> Iterator[list[T]]:
    """Yields lists of so many inputs, the last of the rest."""
    while some := list(islice(inputs, size)):
        yield some


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a broken link: reading it will fail with the reason
        return False
