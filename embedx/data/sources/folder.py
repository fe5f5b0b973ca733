"""A folder of images."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa

from embedx.config import LOCK
from embedx.data.files import FileReader
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

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".tga"}
)
FEATURE_SUFFIXES = frozenset({".npy", ".safetensors"})
SPLIT_FOLDERS = frozenset({"train", "val", "valid", "validation", "test"})


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
        found = sorted(self._walk(os.fsencode(self.root), ()))
        if not found:
            what = "images" if self.suffixes is IMAGE_SUFFIXES else "features"
            raise ConfigError(f"no {what} in {self.root}; looked for files named {' '.join(sorted(self.suffixes))}")
        relative, sizes, times = zip(*found, strict=True)
        keys = [as_text(b"/".join(parts)) for parts in relative]
        folders = [[as_text(part) for part in parts[:-1]] for parts in relative]
        root = os.fsencode(self.root.absolute())
        classes = [parts[0] if parts else None for parts in folders]
        return pa.table(
            {
                "key": keys,
                "path": [os.path.join(root, *parts) for parts in relative],
                "offset": [None] * len(keys),
                "size": sizes,
                "mtime_ns": times,
                TARGET: classes,
                "class": classes,
                "parent": ["/".join(parts) or None for parts in folders],
            },
            schema=pa.schema([*COMMON_SCHEMA, *((name, pa.string()) for name in (TARGET, *self.metadata))]),
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
            if os.path.splitext(entry.name)[1].lower().decode("ascii", "replace") in self.suffixes:
                yield (*below, entry.name), *size_and_time


def open_folder(name: str | None, location: str, options: SourceOptions) -> Mapping[str, Source]:
    """The sources of a folder.

    Without a name, sub-folders that are all among train, val, valid, validation and test are the splits; any other
    folder is the split `all`. A store among the sub-folders counts as nothing.

    Raises:
        ConfigError: If there is no such folder.
    """
    path = Path(location)
    _check_folder(location, path)
    named = {name: path} if name is not None else _splits_below(path)
    suffixes = FEATURE_SUFFIXES if options.backbone == "none" else IMAGE_SUFFIXES
    return {split: FolderSource(folder, suffixes) for split, folder in named.items()}


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
