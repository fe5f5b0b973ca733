"""A folder of images, or of files with one input's features each."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from embedx.data.reading.files import FileReader, is_url
from embedx.data.sources.base import COMMON_SCHEMA, SINGLE_SPLIT, TARGET, Reader, Source, as_text, sizes_and_times
from embedx.data.sources.kinds import SUFFIXES, Content, SourceKind, SourceOptions
from embedx.errors import ConfigError
from embedx.names import LOCK

if TYPE_CHECKING:
    from embedx.data.reading.remote import ListedFile

SPLIT_FOLDERS = frozenset({"train", "val", "valid", "validation", "test"})
_ENCODED = {content: tuple(map(os.fsencode, suffixes)) for content, suffixes in SUFFIXES.items()}

_CHUNK = 1 << 16
"""The number of inputs per table; a single table of all would take four times the memory while it is built."""


class _FolderSlice(NamedTuple):
    """Consecutive inputs of one folder, at most `_CHUNK` of them."""

    folder: tuple[bytes, ...]
    """The folder's path below the source's, as a list of names."""
    names: list[bytes]
    paths: list[bytes]
    """The absolute paths, or URLs."""


class FolderSource:
    """A folder of images, or of features one file each, searched recursively; hidden files and folders are left out.

    The key is the path below the folder. Metadata: `class`, the first folder below the root, and `parent`,
    the folders between root and file; both null for a file in the root itself. Links are followed,
    except those that lead back to a folder that holds them. Files are sorted by name, folder by folder.

    Args:
        root: The path of the folder.
        content: The content of the files, which tells their suffixes.
    """

    metadata: tuple[str, ...] = ("class", "parent")
    reader: Reader = FileReader()

    def __init__(self, root: Path, content: Content = "images") -> None:
        self.root = root
        self.content = content

    def __str__(self) -> str:
        return str(self.root)

    def scan(self) -> pa.Table:
        """Lists the images; the target is the class."""
        tables = [self._table(slices) for slices in _in_chunks(self._slices())]
        if not tables:
            named = " ".join(sorted(SUFFIXES[self.content]))
            raise ConfigError(f"no {self.content} in {self}; looked for files named {named}")
        return pa.concat_tables(tables)

    def _table(self, slices: list[_FolderSlice]) -> pa.Table:
        paths = pa.chunked_array([pa.array([path for part in slices for path in part.paths], pa.binary())])
        sizes, times = self._sizes_and_times(paths)
        folders = [[as_text(name) for name in part.folder] for part in slices]
        slice_of = pa.array(np.repeat(np.arange(len(slices)), [len(part.names) for part in slices]))
        classes = pa.array([parts[0] if parts else None for parts in folders], pa.string()).take(slice_of)
        return pa.table(
            {
                "key": [as_text(key) for part in slices for key in _joined(part)],
                "path": paths,
                "offset": pa.nulls(len(paths), pa.int64()),
                "size": sizes,
                "mtime_ns": times,
                TARGET: classes,
                "class": classes,
                "parent": pa.array(["/".join(parts) or None for parts in folders], pa.string()).take(slice_of),
            },
            schema=pa.schema([*COMMON_SCHEMA, *((name, pa.string()) for name in (TARGET, *self.metadata))]),
        )

    def _sizes_and_times(self, paths: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        return sizes_and_times(paths)

    def _slices(self) -> Iterator[_FolderSlice]:
        """Yields the inputs, sorted by the parts of their path below the folder."""
        return self._walk(os.fsencode(self.root.absolute()))

    def _walk(
        self, folder: bytes, ancestors: tuple[tuple[int, int], ...] = (), below: tuple[bytes, ...] = ()
    ) -> Iterator[_FolderSlice]:
        try:
            own = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise ConfigError(
                f"{as_text(folder)}: can't be listed ({error.strerror}); make it readable, or name other folders"
            ) from error
        identity = (own.st_dev, own.st_ino)
        if identity in ancestors:
            return
        part = _FolderSlice(below, [], [])
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            is_folder = _is_folder(entry)
            if not is_folder and _is_input(entry.name, self.content):
                part.names.append(entry.name)
                part.paths.append(entry.path)
            if part.names and (is_folder or len(part.names) == _CHUNK):
                yield part
                part = _FolderSlice(below, [], [])
            if is_folder:
                yield from self._walk(entry.path, (*ancestors, identity), (*below, entry.name))
        if part.names:
            yield part


class RemoteFolder(FolderSource):
    """A folder behind a URL, by the same rules.

    Args:
        url: The URL of the folder.
        files: The files below the folder.
        content: The content of the files, which tells their suffixes.
    """

    def __init__(self, url: str, files: list[ListedFile], content: Content) -> None:
        self.url = url
        self._files = {os.fsencode(file.url): file for file in files}
        self.content = content

    def __str__(self) -> str:
        return self.url

    def _sizes_and_times(self, paths: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        known = [self._files[url] for url in paths.to_pylist()]
        sizes, times = [file.size for file in known], [file.mtime_ns for file in known]
        return pa.chunked_array([pa.array(sizes, pa.int64())]), pa.chunked_array([pa.array(times, pa.int64())])

    def _slices(self) -> Iterator[_FolderSlice]:
        found = sorted((tuple(os.fsencode(file.path).split(b"/")), url) for url, file in self._files.items())
        for folder, listed in groupby(found, key=lambda each: each[0][:-1]):
            if any(name.startswith(b".") for name in folder):
                continue
            ours = [(name, url) for (*_, name), url in listed if _is_input(name, self.content)]
            for start in range(0, len(ours), _CHUNK):
                names, urls = zip(*ours[start : start + _CHUNK], strict=True)
                yield _FolderSlice(folder, list(names), list(urls))


def open_folder(name: str | None, location: str, options: SourceOptions) -> Mapping[str, Source]:
    """Opens a folder as one or several splits.

    Without a name, sub-folders that are all among train, val, valid, validation and test are the splits; any other
    folder is the split `all`. A store among the sub-folders is ignored.

    Raises:
        ConfigError: If there is no such folder, or it can't be listed.
    """
    if is_url(location):
        return _open_remote(name, location, options.content)
    path = Path(location)
    _check_folder(location, path)
    named = {name: path} if name is not None else _splits_below(path)
    return {split: FolderSource(folder, options.content) for split, folder in named.items()}


def _open_remote(name: str | None, url: str, content: Content) -> Mapping[str, Source]:
    from embedx.data.reading import remote

    try:
        files = remote.list_files(url)
    except OSError as error:
        raise ConfigError(
            f"--data {url}: can't be listed ({error.strerror}); check its name and your access to it"
        ) from error
    folders = {file.path.split("/")[0] for file in files if "/" in file.path and not file.path.startswith(".")}
    images = any("/" not in file.path and _is_input(os.fsencode(file.path), "images") for file in files)
    if name is not None or not folders or images or not folders <= SPLIT_FOLDERS:
        return {name or SINGLE_SPLIT: RemoteFolder(url, files, content)}
    return {
        folder: RemoteFolder(
            f"{url.rstrip('/')}/{folder}",
            [file._replace(path=path) for file in files if (path := file.path.removeprefix(f"{folder}/")) != file.path],
            content,
        )
        for folder in sorted(folders)
    }


def _in_chunks(slices: Iterable[_FolderSlice]) -> Iterator[list[_FolderSlice]]:
    """Yields lists of slices that hold `_CHUNK` inputs together, or up to twice as many."""
    chunk: list[_FolderSlice] = []
    count = 0
    for part in slices:
        chunk.append(part)
        count += len(part.names)
        if count >= _CHUNK:
            yield chunk
            chunk, count = [], 0
    if chunk:
        yield chunk


def _joined(part: _FolderSlice) -> Iterator[bytes]:
    prefix = b"".join(name + b"/" for name in part.folder)
    return (prefix + name for name in part.names)


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a broken link: reading it will fail with the reason
        return False


def _is_input(name: bytes, content: Content) -> bool:
    return name.lower().endswith(_ENCODED[content]) and not name.startswith(b".")


def _check_folder(spec: str, path: Path) -> None:
    if os.path.isdir(path):
        return
    if os.path.exists(path):
        raise ConfigError(f"--data {spec}: {path} is a file; give a folder of images, or a table such as .csv")
    siblings = os.listdir(path.parent) if os.path.isdir(path.parent) else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f"did you mean {path.parent / near[0]}?" if near else "give a folder of images, or NAME=FOLDER"
    raise ConfigError(f"--data {spec}: there is no folder {path}; {hint}")


def _splits_below(root: Path) -> dict[str, Path]:
    try:
        children = [child for child in sorted(root.iterdir()) if not child.name.startswith(".")]
    except OSError as error:
        raise ConfigError(f"--data {root}: can't be listed ({error.strerror})") from error
    folders = [child for child in children if child.is_dir() and not (child / LOCK).exists()]
    images = [child for child in children if child.suffix.lower() in SUFFIXES["images"] and not child.is_dir()]
    if folders and not images and all(folder.name in SPLIT_FOLDERS for folder in folders):
        return {folder.name: folder for folder in folders}
    return {SINGLE_SPLIT: root}


KIND = SourceKind(lambda location: True, open_folder)
