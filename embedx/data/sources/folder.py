"""A folder of images, or of files with one input's features each."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from fnmatch import fnmatch
from functools import partial
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from embedx.data.reading.files import FileReader, is_url
from embedx.data.sources.base import SINGLE_SPLIT, TARGET, Source, as_text, samples_table, sizes_and_times
from embedx.data.sources.kinds import SUFFIXES, Content, SourceKind, SourceOptions
from embedx.data.sources.table_file import TABLE_SUFFIXES
from embedx.data.sources.table_parts import check_lake, parts_of_folder
from embedx.data.sources.tables import open_parts
from embedx.errors import ConfigError
from embedx.names import LOCK

if TYPE_CHECKING:
    from embedx.system.remote import ListedFile

SPLIT_FOLDERS = frozenset({"train", "val", "valid", "validation", "test"})
T = TypeVar("T")
_METADATA = ("class", "parent")
_TABLES = "tables"
_ENCODED = {
    content: tuple(map(os.fsencode, suffixes)) for content, suffixes in [*SUFFIXES.items(), (_TABLES, TABLE_SUFFIXES)]
}

_LookUp = Callable[[pa.ChunkedArray], tuple[pa.ChunkedArray, pa.ChunkedArray]]
"""A function that returns the sizes and times of paths."""
_CHUNK = 1 << 16
"""The number of inputs per table; a single table of all would take four times the memory while it is built."""


class _FolderSlice(NamedTuple):
    """Consecutive inputs of one folder, at most `_CHUNK` of them."""

    folder: tuple[bytes, ...]
    """The folder's path below the source's, as a list of names."""
    names: list[bytes]
    paths: list[bytes]
    """The absolute paths, or URLs."""


def folder_source(root: Path, content: Content = "images") -> Source:
    """Returns a folder of images, or of features one file each, as a source, searched recursively.

    The key is the path below the folder; the target is the class. Metadata: `class`, the first folder below the root,
    and `parent`, the folders between root and file; both null for a file in the root itself. Hidden files and folders
    are left out. Links are followed, except those that lead back to a folder that holds them. Files are sorted by name,
    folder by folder.
    """
    walk = partial(_walk, os.fsencode(root.absolute()), content)
    return Source(_METADATA, FileReader(), lambda: _scan(str(root), content, walk(), sizes_and_times))


def _remote_source(url: str, files: list[ListedFile], content: Content) -> Source:
    """Returns a folder behind a URL, which holds these files, as a source by the same rules."""
    by_url = {os.fsencode(file.url): file for file in files}

    def listed(paths: pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
        known = [by_url[url] for url in paths.to_pylist()]
        return pa.array([file.size for file in known], pa.int64()), pa.array(
            [file.mtime_ns for file in known], pa.int64()
        )

    return Source(_METADATA, FileReader(), lambda: _scan(url, content, _remote_slices(by_url, content), listed))


def _scan(location: str, content: Content, slices: Iterable[_FolderSlice], look_up: _LookUp) -> pa.Table:
    tables = [_table(some, look_up) for some in _in_chunks(slices)]
    if not tables:
        named = " ".join(sorted(SUFFIXES[content]))
        others = " ".join(sorted(suffix for suffix in TABLE_SUFFIXES if not suffix.endswith(".gz")))
        raise ConfigError(f"no {content} in {location}; looked for files named {named}, and for tables named {others}")
    return pa.concat_tables(tables)


def _table(slices: list[_FolderSlice], look_up: _LookUp) -> pa.Table:
    paths = pa.chunked_array([pa.array([path for part in slices for path in part.paths], pa.binary())])
    sizes, times = look_up(paths)
    folders = [[as_text(name) for name in part.folder] for part in slices]
    slice_of = pa.array(np.repeat(np.arange(len(slices)), [len(part.names) for part in slices]))
    classes = pa.array([parts[0] if parts else None for parts in folders], pa.string()).take(slice_of)
    columns = {
        "key": [as_text(key) for part in slices for key in _joined(part)],
        "path": paths,
        "size": sizes,
        "mtime_ns": times,
        TARGET: classes,
        "class": classes,
        "parent": pa.array(["/".join(parts) or None for parts in folders], pa.string()).take(slice_of),
    }
    return samples_table(columns, pa.string())


def _walk(
    folder: bytes, content: str, ancestors: tuple[tuple[int, int], ...] = (), below: tuple[bytes, ...] = ()
) -> Iterator[_FolderSlice]:
    """Yields the inputs, sorted by the parts of their path below the folder."""
    try:
        own = os.stat(folder)
        entries = sorted(os.scandir(folder), key=attrgetter("name"))
    except OSError as error:
        raise ConfigError(
            f"{as_text(folder)}: can't be listed ({error.strerror}); make it readable, or name other folders"
        ) from error
    identity = (own.st_dev, own.st_ino)
    if identity in ancestors:
        return
    visible = [entry for entry in entries if not entry.name.startswith(b".")]
    for are_folders, run in groupby(visible, _is_folder):
        if are_folders:
            for entry in run:
                yield from _walk(entry.path, content, (*ancestors, identity), (*below, entry.name))
        else:
            for some in _batched(entry for entry in run if _is_input(entry.name, content)):
                yield _FolderSlice(below, [entry.name for entry in some], [entry.path for entry in some])


def _remote_slices(urls: Mapping[bytes, ListedFile], content: str) -> Iterator[_FolderSlice]:
    found = sorted((tuple(os.fsencode(file.path).split(b"/")), url) for url, file in urls.items())
    for folder, listed in groupby(found, key=lambda each: each[0][:-1]):
        if any(name.startswith(b".") for name in folder):
            continue
        for some in _batched((name, url) for (*_, name), url in listed if _is_input(name, content)):
            yield _FolderSlice(folder, [name for name, _ in some], [url for _, url in some])


def _batched(inputs: Iterator[T]) -> Iterator[list[T]]:
    while some := list(islice(inputs, _CHUNK)):
        yield some


def open_folder(name: str | None, location: str, options: SourceOptions) -> Mapping[str, Source]:
    """Opens a folder as one or several splits.

    Without a name, sub-folders that are all among train, val, valid, validation and test are the splits; any other
    folder is the split `all`. A store among the sub-folders is ignored.

    Raises:
        ConfigError: If there is no such folder, or it can't be listed.
    """
    if is_url(location):
        return _open_remote(name, location, options)
    path = Path(location)
    _check_folder(location, path)
    walk = partial(_walk, os.fsencode(path.absolute()))
    if not any(walk(options.content)) and (parts := parts_of_folder(location, _tables(walk(_TABLES)))):
        check_lake(location, lambda pattern: any(path.glob(pattern)))
        return open_parts(name, location, parts, options)
    splits = {name: path} if name is not None else {split: path / split for split in _splits_below(path)}
    return {split: folder_source(folder, options.content) for split, folder in (splits or {SINGLE_SPLIT: path}).items()}


def _tables(slices: Iterable[_FolderSlice]) -> list[tuple[str, str]]:
    """Returns the locations of tables and their paths below the folder."""
    return [
        (os.fsdecode(path), os.fsdecode(name))
        for part in slices
        for path, name in zip(part.paths, _joined(part), strict=True)
    ]


def _open_remote(name: str | None, url: str, options: SourceOptions) -> Mapping[str, Source]:
    from embedx.system import remote

    try:
        files = remote.list_files(url)
    except OSError as error:
        raise ConfigError(
            f"--data {url}: can't be listed ({error.strerror}); check its name and your access to it"
        ) from error
    slices = partial(_remote_slices, {os.fsencode(file.url): file for file in files})
    if not any(slices(options.content)) and (tables := parts_of_folder(url, _tables(slices(_TABLES)))):
        check_lake(url, lambda pattern: any(fnmatch(file.path, pattern) for file in files))
        return open_parts(name, url, tables, options)
    content = options.content
    parts = [file.path.split("/") for file in files]
    splits = _splits(
        {first for first, *rest in parts if rest and not first.startswith(".")}, [p[0] for p in parts if len(p) == 1]
    )
    if name is not None or not splits:
        return {name or SINGLE_SPLIT: _remote_source(url, files, content)}
    return {
        split: _remote_source(
            f"{url.rstrip('/')}/{split}",
            [file._replace(path=path) for file in files if (path := file.path.removeprefix(f"{split}/")) != file.path],
            content,
        )
        for split in splits
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


def _is_input(name: bytes, content: str) -> bool:
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


def _splits_below(root: Path) -> list[str]:
    try:
        children = [child for child in root.iterdir() if not child.name.startswith(".")]
    except OSError as error:
        raise ConfigError(f"--data {root}: can't be listed ({error.strerror})") from error
    folders = {child.name for child in children if child.is_dir()}
    stores = {name for name in folders if (root / name / LOCK).exists()}
    return _splits(folders - stores, (child.name for child in children if child.name not in folders))


def _splits(folders: Set[str], files: Iterable[str]) -> list[str]:
    """Returns the folders that are splits: all of them, if all are named so and no image stands beside them."""
    images = any(_is_input(os.fsencode(file), "images") for file in files)
    return sorted(folders) if folders <= SPLIT_FOLDERS and not images else []


KIND = SourceKind(lambda location: True, open_folder)
