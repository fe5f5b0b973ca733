"""A folder of images."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pyarrow as pa

from embedx.config import LOCK
from embedx.data.files import FileReader, is_url
from embedx.data.sources.base import (
    COMMON_SCHEMA,
    SINGLE_SPLIT,
    TARGET,
    Reader,
    Source,
    SourceKind,
    SourceOptions,
    as_text,
)
from embedx.errors import ConfigError

if TYPE_CHECKING:
    from embedx.data.remote import Listed

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".tga"}
)
FEATURE_SUFFIXES = frozenset({".npy", ".safetensors"})
SPLIT_FOLDERS = frozenset({"train", "val", "valid", "validation", "test"})


_CHUNK = 1 << 16
"""Inputs of which a table is made at a time; one of all would take four times the memory while it is made."""

_Found: TypeAlias = tuple[tuple[bytes, ...], int | None, int | None, bytes]
"""Path below the folder in parts, size, modification time in ns, and the whole path or URL."""


class FolderSource:
    """A folder of images, or of features one file each, searched recursively; hidden files and folders are left out.

    The key is the path below the folder. Metadata: `class`, the first folder below the root, and `parent`,
    the folders between root and file; both null for a file that lies in the root itself. Links are followed,
    except those that lead back to a folder they lie in. The order is that of the names, folder by folder.
    """

    metadata: tuple[str, ...] = ("class", "parent")
    reader: Reader = FileReader()

    def __init__(self, root: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> None:
        self.root = root
        self.suffixes = suffixes

    def __str__(self) -> str:
        return str(self.root)

    def scan(self) -> pa.Table:
        """Lists the images; the target is the class."""
        found = self._found()
        chunks = []
        while chunk := list(islice(found, _CHUNK)):
            chunks.append(self._table(chunk))
        if not chunks:
            what = "images" if self.suffixes is IMAGE_SUFFIXES else "features"
            raise ConfigError(f"no {what} in {self}; looked for files named {' '.join(sorted(self.suffixes))}")
        return pa.concat_tables(chunks)

    def _table(self, found: list[_Found]) -> pa.Table:
        relative, sizes, times, paths = zip(*found, strict=True)
        folders = [[as_text(part) for part in parts[:-1]] for parts in relative]
        classes = [parts[0] if parts else None for parts in folders]
        return pa.table(
            {
                "key": [as_text(b"/".join(parts)) for parts in relative],
                "path": paths,
                "offset": [None] * len(found),
                "size": sizes,
                "mtime_ns": times,
                TARGET: classes,
                "class": classes,
                "parent": ["/".join(parts) or None for parts in folders],
            },
            schema=pa.schema([*COMMON_SCHEMA, *((name, pa.string()) for name in (TARGET, *self.metadata))]),
        )

    def _found(self) -> Iterator[_Found]:
        """What there is, by its path below the folder, part by part."""
        return self._walk(os.fsencode(self.root.absolute()))

    def _walk(
        self, folder: bytes, ancestors: tuple[tuple[int, int], ...] = (), below: tuple[bytes, ...] = ()
    ) -> Iterator[_Found]:
        try:
            own = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise ConfigError(
                f"{as_text(folder)}: can't be listed ({error.strerror}); mend it, or name other folders"
            ) from error
        identity = (own.st_dev, own.st_ino)
        if identity in ancestors:
            return
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            try:
                status = entry.stat()
            except OSError:  # a broken link: the read will say so, and reject it
                size_and_time: tuple[int | None, int | None] = None, None
            else:
                if stat.S_ISDIR(status.st_mode):
                    yield from self._walk(entry.path, (*ancestors, identity), (*below, entry.name))
                    continue
                size_and_time = status.st_size, status.st_mtime_ns
            if _suffix(entry.name) in self.suffixes:
                yield (*below, entry.name), *size_and_time, entry.path


class RemoteFolder(FolderSource):
    """A folder behind a URL, by the same rules.

    Args:
        url: Of the folder.
        files: Those in it.
        suffixes: Of those that count.
    """

    def __init__(self, url: str, files: list[Listed], suffixes: frozenset[str]) -> None:
        self.url = url
        self.files = files
        self.suffixes = suffixes

    def __str__(self) -> str:
        return self.url

    def _found(self) -> Iterator[_Found]:
        for parts, file in sorted((tuple(os.fsencode(file.below).split(b"/")), file) for file in self.files):
            if _suffix(parts[-1]) in self.suffixes and not any(part.startswith(b".") for part in parts):
                yield parts, file.size, file.mtime_ns, os.fsencode(file.url)


def open_folder(name: str | None, location: str, options: SourceOptions) -> Mapping[str, Source]:
    """The sources of a folder.

    Without a name, sub-folders that are all among train, val, valid, validation and test are the splits; any other
    folder is the split `all`. A store among the sub-folders counts as nothing.

    Raises:
        ConfigError: If there is no such folder, or a URL's can't be listed.
    """
    suffixes = FEATURE_SUFFIXES if options.backbone == "none" else IMAGE_SUFFIXES
    if is_url(location):
        return _open_remote(name, location, suffixes)
    path = Path(location)
    _check_folder(location, path)
    named = {name: path} if name is not None else _splits_below(path)
    return {split: FolderSource(folder, suffixes) for split, folder in named.items()}


def _open_remote(name: str | None, url: str, suffixes: frozenset[str]) -> Mapping[str, Source]:
    from embedx.data import remote

    try:
        files = remote.list_files(url)
    except OSError as error:
        raise ConfigError(
            f"--data {url}: can't be listed ({error.strerror}); check its name, and what you have access to"
        ) from error
    parts = {file.below.split("/")[0] for file in files if "/" in file.below and not file.below.startswith(".")}
    images = any("/" not in file.below and _suffix(os.fsencode(file.below)) in IMAGE_SUFFIXES for file in files)
    if name is not None or not parts or images or not parts <= SPLIT_FOLDERS:
        return {name or SINGLE_SPLIT: RemoteFolder(url, files, suffixes)}
    return {
        part: RemoteFolder(
            f"{url.rstrip('/')}/{part}",
            [
                file._replace(below=below)
                for file in files
                if (below := file.below.removeprefix(f"{part}/")) != file.below
            ],
            suffixes,
        )
        for part in sorted(parts)
    }


def _suffix(name: bytes) -> str:
    return os.path.splitext(name)[1].lower().decode("ascii", "replace")


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
    images = [child for child in children if child.suffix.lower() in IMAGE_SUFFIXES and not child.is_dir()]
    if folders and not images and all(folder.name in SPLIT_FOLDERS for folder in folders):
        return {folder.name: folder for folder in folders}
    return {SINGLE_SPLIT: root}


KIND = SourceKind(lambda location: True, open_folder)
