"""The inputs in a folder behind a URL, in a fixed order."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, cast

import pyarrow as pa

from embedx.data.sources import folder_files
from embedx.data.sources.folder_files import FolderSlice, Names, batched
from embedx.data.sources.selection import LeftOut, Selection
from embedx.names import LOCK

if TYPE_CHECKING:
    from embedx.system.links import ListedFile

_LOCK = os.fsencode(LOCK)
_File = tuple[Names, bytes, int | None, int | None]
"""A file of a listing: the names on its path, its URL, its size and its time."""


class RemoteFolder:
    """A folder behind a URL, which holds these files.

    Args:
        files: The files in it and below, in order.
        selection: The choice of inputs.
        above: The names on its path below the source.
    """

    def __init__(self, files: Sequence[_File], selection: Selection, above: Names = ()) -> None:
        self._selection = selection
        self._above = above
        self._everything = files
        stores = {names[:-1] for names, *_ in files if names[-1] == _LOCK and len(names) > 1}
        self._stores = sorted(stores)
        self._files = [
            file
            for file in files
            if not file[0][-1].startswith(b".")
            and not (stores and any(file[0][:depth] in stores for depth in range(1, len(file[0]))))
        ]

    @classmethod
    def of(cls, files: Iterable[ListedFile], selection: Selection) -> RemoteFolder:
        """Returns the folder that holds the files of a listing, of which there may be millions."""
        kept: list[_File] = []
        same: dict[Names, Names] = {}
        for url, path, size, mtime_ns in files:
            *above, name = os.fsencode(path).split(b"/")
            folder = same.setdefault(tuple(above), tuple(above))  # once for all of its files
            kept.append(((*folder, name), os.fsencode(url), size, mtime_ns))
        kept.sort()
        return cls(kept, selection)

    def enter(self, name: bytes) -> RemoteFolder:
        """Returns the folder of this name in it."""
        inside = [(names[1:], *rest) for names, *rest in self._everything if names[0] == name and len(names) > 1]
        return RemoteFolder(cast(list[_File], inside), self._selection, (*self._above, name))

    def choosing(self, selection: Selection) -> RemoteFolder:
        """Returns the folder with another choice of inputs."""
        return RemoteFolder(self._everything, selection, self._above)

    def has(self, pattern: str) -> bool:
        """Tells whether a file of the whole listing, hidden or not, matches a pattern."""
        return any(fnmatch.fnmatch(os.fsdecode(b"/".join(names)), pattern) for names, *_ in self._everything)

    def folders(self, left_out: LeftOut) -> list[bytes]:
        """Returns the names of the folders in it that may hold inputs, sorted, and accounts for the others."""
        found = sorted({names[0] for names, *_ in self._files if len(names) > 1})
        return [name for name in found if self._selection.takes_folder((*self._above, name), left_out)]

    def count_inputs(self, left_out: LeftOut) -> int:
        """Counts the inputs in it, not in the folders below, and accounts for the other files."""
        names = (names[0] for names, *_ in self._files if len(names) == 1)
        return sum(self._selection.takes_file(self._above, name, None, left_out) for name in names)

    def holds_inputs(self) -> bool:
        """Tells whether there is an input in it, or below."""
        return next(self.slices(LeftOut()), None) is not None

    def slices(self, left_out: LeftOut) -> Iterator[FolderSlice]:
        """Yields the inputs in it and below, sorted by the parts of their paths, and accounts for the other files."""
        for store in self._stores:
            left_out.add_store((*self._above, *store))
        taken: dict[Names, bool] = {(): True}
        for folder, files in groupby(self._files, key=lambda file: file[0][:-1]):
            for depth in range(len(folder)):
                if folder[: depth + 1] not in taken:
                    here = (*self._above, *folder[: depth + 1])
                    taken[folder[: depth + 1]] = taken[folder[:depth]] and self._selection.takes_folder(here, left_out)
            if not taken[folder]:
                continue
            here = (*self._above, *folder)
            inputs = (file for file in files if self._selection.takes_file(here, file[0][-1], None, left_out))
            for some in batched(inputs, folder_files.CHUNK):
                names, urls = [file[0][-1] for file in some], [file[1] for file in some]
                yield FolderSlice(folder, names, urls, [file[2:] for file in some])

    def sizes_and_times(self, slices: Sequence[FolderSlice]) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """Returns the sizes and times that the listing has."""
        facts = [fact for part in slices for fact in part.facts]
        sizes, times = (pa.chunked_array([[fact[which] for fact in facts]], pa.int64()) for which in (0, 1))
        return sizes, times
