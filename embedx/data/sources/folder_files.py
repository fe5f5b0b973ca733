"""The inputs in a folder, on a disk or behind a URL, in a fixed order."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self, TypeVar

import pyarrow as pa

from embedx.data.sources.base import as_text, sizes_and_times
from embedx.data.sources.selection import LeftOut, Selection
from embedx.errors import ConfigError
from embedx.names import LOCK

if TYPE_CHECKING:
    from embedx.system.links import ListedFile

CHUNK = 1 << 16
"""The number of inputs per table; a single table of all would take four times the memory while it is built."""
T = TypeVar("T")
_LOCK = os.fsencode(LOCK)
_Names = tuple[bytes, ...]


class FolderSlice(NamedTuple):
    """Consecutive inputs of one folder, at most CHUNK of them."""

    folder: _Names
    """The folder's path below the one that is listed, as a list of names."""
    names: list[bytes]
    paths: list[bytes]
    """The absolute paths, or URLs."""


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

    def sizes_and_times(self, paths: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """Returns the sizes and times of inputs."""
        ...


class _Place(NamedTuple):
    """A folder that is to be visited."""

    path: bytes
    below: _Names
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

    sizes_and_times = staticmethod(sizes_and_times)

    def __init__(self, path: bytes, selection: Selection, above: _Names = ()) -> None:
        self.path = path
        self._selection = selection
        self._above = above

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
                for some in _batched(inputs, CHUNK if ordered else 1):
                    yield FolderSlice(below, [entry.name for entry in some], [entry.path for entry in some])
                continue
            for entry in run:
                if self._selection.takes_folder((*here, entry.name), left_out):
                    yield _Place(entry.path, (*below, entry.name), (*ancestors, identity))

    def _entries(self, folder: bytes, below: _Names, left_out: LeftOut) -> list[os.DirEntry[bytes]]:
        """Returns what is in a folder and not hidden; nothing of a store."""
        entries = list(_listed(folder, os.scandir))
        visible = [entry for entry in entries if not entry.name.startswith(b".")]
        if len(visible) == len(entries) or not any(entry.name == _LOCK for entry in entries):
            return visible
        names = (*self._above, *below)
        self._selection.check_source_is_no_store(folder) if not names else left_out.add_store(names)
        return [] if names else visible


class RemoteFolder:
    """A folder behind a URL, which holds these files.

    Args:
        files: The names on each file's path below the folder, and its URL.
        listed: The files by their URLs.
        selection: The choice of inputs.
        above: The names on its path below the source.
    """

    def __init__(
        self,
        files: Sequence[tuple[_Names, bytes]],
        listed: Mapping[bytes, ListedFile],
        selection: Selection,
        above: _Names = (),
    ) -> None:
        self._listed = listed
        self._selection = selection
        self._above = above
        self._everything = sorted(files)
        stores = {names[:-1] for names, _ in files if names[-1] == _LOCK and len(names) > 1}
        self._stores = sorted(stores)
        self._files = [
            (names, url)
            for names, url in self._everything
            if not names[-1].startswith(b".") and not any(names[:depth] in stores for depth in range(1, len(names)))
        ]

    @classmethod
    def of(cls, files: Iterable[ListedFile], selection: Selection) -> RemoteFolder:
        """Returns the folder that holds the files of a listing."""
        listed = {os.fsencode(file.url): file for file in files}
        paths = {url: tuple(os.fsencode(file.path).split(b"/")) for url, file in listed.items()}
        return cls([(names, url) for url, names in paths.items()], listed, selection)

    def enter(self, name: bytes) -> RemoteFolder:
        """Returns the folder of this name in it."""
        inside = [(names[1:], url) for names, url in self._everything if names[0] == name and len(names) > 1]
        return RemoteFolder(inside, self._listed, self._selection, (*self._above, name))

    def choosing(self, selection: Selection) -> RemoteFolder:
        """Returns the folder with another choice of inputs."""
        return RemoteFolder(self._everything, self._listed, selection, self._above)

    def has(self, pattern: str) -> bool:
        """Tells whether a file of the whole listing, hidden or not, matches a pattern."""
        return any(fnmatch.fnmatch(file.path, pattern) for file in self._listed.values())

    def folders(self, left_out: LeftOut) -> list[bytes]:
        """Returns the names of the folders in it that may hold inputs, sorted, and accounts for the others."""
        found = sorted({names[0] for names, _ in self._files if len(names) > 1})
        return [name for name in found if self._selection.takes_folder((*self._above, name), left_out)]

    def count_inputs(self, left_out: LeftOut) -> int:
        """Counts the inputs in it, not in the folders below, and accounts for the other files."""
        names = (names[0] for names, _ in self._files if len(names) == 1)
        return sum(self._selection.takes_file(self._above, name, None, left_out) for name in names)

    def holds_inputs(self) -> bool:
        """Tells whether there is an input in it, or below."""
        return next(self.slices(LeftOut()), None) is not None

    def slices(self, left_out: LeftOut) -> Iterator[FolderSlice]:
        """Yields the inputs in it and below, sorted by the parts of their paths, and accounts for the other files."""
        for store in self._stores:
            left_out.add_store((*self._above, *store))
        taken: dict[_Names, bool] = {(): True}
        for folder, files in groupby(self._files, key=lambda file: file[0][:-1]):
            for depth in range(len(folder)):
                if folder[: depth + 1] not in taken:
                    here = (*self._above, *folder[: depth + 1])
                    taken[folder[: depth + 1]] = taken[folder[:depth]] and self._selection.takes_folder(here, left_out)
            if not taken[folder]:
                continue
            inputs = (
                (names[-1], url)
                for names, url in files
                if self._selection.takes_file((*self._above, *folder), names[-1], None, left_out)
            )
            for some in _batched(inputs, CHUNK):
                yield FolderSlice(folder, [name for name, _ in some], [url for _, url in some])

    def sizes_and_times(self, paths: pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
        """Returns the sizes and times that the listing has."""
        known = [self._listed[url] for url in paths.to_pylist()]
        sizes = pa.array([file.size for file in known], pa.int64())
        return sizes, pa.array([file.mtime_ns for file in known], pa.int64())


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


def _batched(inputs: Iterator[T], size: int) -> Iterator[list[T]]:
    while some := list(islice(inputs, size)):
        yield some


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a broken link: reading it will fail with the reason
        return False
