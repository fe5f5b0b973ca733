"""Sources: where inputs come from. A source lists its samples as a table; `parse_data` reads `--data`."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from embedx.config import LOCK, RESERVED_SPLITS
from embedx.errors import ConfigError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".tga"}
)
SPLIT_FOLDERS = frozenset({"train", "val", "valid", "validation", "test"})
SINGLE_SPLIT = "all"

COMMON_SCHEMA = pa.schema([("key", pa.string()), ("path", pa.binary()), ("size", pa.int64()), ("mtime_ns", pa.int64())])
"""Columns of every source's table: the identity, where to read, and how to tell that it changed.

`path` is bytes, as file systems have them; `size` and `mtime_ns` are null for what can't be asked."""


class Source(Protocol):
    """Where the inputs of one split come from."""

    metadata: tuple[str, ...]
    """Names of the columns behind the common ones; each can be a group key."""

    def scan(self) -> pa.Table:
        """Lists the samples in source order: the columns of COMMON_SCHEMA, then the metadata.

        Raises:
            ConfigError: If there is nothing there, or it can't be listed.
        """
        ...


class FolderSource:
    """A folder of images, searched recursively; hidden files and folders are left out.

    The key is the path below the folder. Metadata: `class`, the first folder below the root, and `parent`,
    the folders between root and file; both null for a file that lies in the root itself. Links are followed,
    except those that lead back to a folder they lie in. The order is that of the names, folder by folder.
    """

    metadata: tuple[str, ...] = ("class", "parent")

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def scan(self) -> pa.Table:
        """Lists the images: COMMON_SCHEMA, then `class` and `parent`."""
        found = sorted(self._walk(os.fsencode(self.root), ()))
        if not found:
            raise ConfigError(f"no images in {self.root}; looked for files named {' '.join(sorted(IMAGE_SUFFIXES))}")
        relative, sizes, times = zip(*found, strict=True)
        keys = [as_text(b"/".join(parts)) for parts in relative]
        folders = [[as_text(part) for part in parts[:-1]] for parts in relative]
        root = os.fsencode(self.root.absolute())
        return pa.table(
            {
                "key": keys,
                "path": [os.path.join(root, *parts) for parts in relative],
                "size": sizes,
                "mtime_ns": times,
                "class": [parts[0] if parts else None for parts in folders],
                "parent": ["/".join(parts) or None for parts in folders],
            },
            schema=pa.schema([*COMMON_SCHEMA, ("class", pa.string()), ("parent", pa.string())]),
        )

    def _walk(
        self, folder: bytes, ancestors: tuple[tuple[int, int], ...], below: tuple[bytes, ...] = ()
    ) -> Iterator[tuple[tuple[bytes, ...], int | None, int | None]]:
        """Yields (path below the root in parts, size, modification time) of every image."""
        try:
            own = os.stat(folder)
            entries = list(os.scandir(folder))
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
            if os.path.splitext(entry.name)[1].lower().decode("ascii", "replace") in IMAGE_SUFFIXES:
                yield (*below, entry.name), *size_and_time


def as_text(name: bytes) -> str:
    r"""A file's name as text; bytes that are not UTF-8 become `\xNN`."""
    return name.decode("utf-8", "backslashreplace")


def parse_data(specs: Sequence[str]) -> dict[str, Source]:
    """Reads the values of `--data`, each `[NAME=]FOLDER`, into named sources.

    A folder without a name whose sub-folders are all among train, val, valid, validation and test gives those
    splits; any other one gives the split `all`.

    Raises:
        ConfigError: Naming every fault: a missing folder, a split name given twice, empty or reserved.
    """
    sources: dict[str, Source] = {}
    faults: list[str] = []
    for spec in specs:
        name, path = _split_spec(spec)
        try:
            _check_folder(spec, path)
            named = {name: path} if name is not None else _splits_below(path)
        except ConfigError as error:
            faults += error.faults
            continue
        for split, folder in named.items():
            if split in sources:
                faults.append(f"--data {spec}: the split {split!r} is given twice; name each source, as in NAME={path}")
            elif not split or split.lower() in RESERVED_SPLITS:
                faults.append(f"--data {spec}: a split can't be named {split!r}; choose another name")
            sources[split] = FolderSource(folder)
    ConfigError.check(faults)
    return sources


def _split_spec(spec: str) -> tuple[str | None, Path]:
    name, equals, path = spec.partition("=")
    if equals and "/" not in name and not os.path.exists(spec):
        return name, Path(path)
    return None, Path(spec)


def _check_folder(spec: str, path: Path) -> None:
    if not spec or (spec.endswith("=") and not os.path.exists(spec)):
        raise ConfigError(f"--data {spec!r} names no folder; give NAME=FOLDER")
    if os.path.isdir(path):
        return
    if os.path.exists(path):
        raise ConfigError(f"--data {spec}: {path} is a file; give a folder of images")
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
