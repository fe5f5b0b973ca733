"""The places in which the files of a store are written and read: a folder of this machine, or a bucket."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from embedx.errors import StoreError
from embedx.store.format.atomic import replace, write_all
from embedx.store.format.creation import create_once, create_shard
from embedx.store.format.layout import DEPTH, StoreRoot, other_shard_path
from embedx.store.format.many_at_once import SHARDS_AT_ONCE, many_at_once
from embedx.store.format.no_follow import path_inside, regular_files
from embedx.store.format.object_folder import ObjectFolder


class Storage(Protocol):
    """The place of a store's files, by their paths in it. A file appears whole, or not at all."""

    def put_new(self, relative: str, parts: Sequence[bytes | memoryview]) -> bool:
        """Creates a file with these contents; returns False if there is one, and changes nothing then."""

    def put(self, relative: str, parts: Sequence[bytes | memoryview]) -> object:
        """Writes a file with these contents, in the place of one that may be there."""

    def read(self, relative: str) -> bytes:
        """Reads a file."""

    def read_range(self, relative: str, start: int, stop: int) -> bytes:
        """Reads the bytes from `start` up to `stop` of a file."""

    def size(self, relative: str) -> int | None:
        """Returns a file's number of bytes; None if there is none."""

    def list(self, below: str = "") -> Iterator[str]:
        """Yields the path of each file below a folder of the store."""

    def remove(self, relative: str) -> None:
        """Removes a file, if there is one."""


class LocalStorage:
    """A folder of this machine, which exists.

    Args:
        root: The store's folder.
        token: The name of this process among several that write the store; None if it is the only one.
    """

    def __init__(self, root: Path, token: str | None = None) -> None:
        self.root, self.token = root, token

    def put_new(self, relative: str, parts: Sequence[bytes | memoryview]) -> bool:
        """Creates a file by a link that fails where the name is taken."""
        files = [(path_inside(self.root, relative), parts)]
        ((_, is_new),) = write_all(files, below=self.root, token=self.token, name=create_once)
        return is_new

    def put(self, relative: str, parts: Sequence[bytes | memoryview]) -> None:
        """Writes a file under a temporary name, and renames it."""
        write_all([(path_inside(self.root, relative), parts)], below=self.root, token=self.token)

    def read(self, relative: str) -> bytes:
        """Reads a file."""
        return Path(path_inside(self.root, relative)).read_bytes()

    def read_range(self, relative: str, start: int, stop: int) -> bytes:
        """Reads the bytes from `start` up to `stop` of a file."""
        with open(path_inside(self.root, relative), "rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def size(self, relative: str) -> int | None:
        """Returns a file's number of bytes; None if there is none."""
        try:
            return os.stat(self.root / relative, follow_symlinks=False).st_size
        except FileNotFoundError:
            return None

    def list(self, below: str = "") -> Iterator[str]:
        """Yields the path of each regular file below a folder of the store."""
        for path in regular_files(self.root / below, depth=DEPTH):
            yield path.relative_to(self.root).as_posix()

    def remove(self, relative: str) -> None:
        """Removes a file, if there is one."""
        (self.root / relative).unlink(missing_ok=True)


def storage_of(root: StoreRoot, token: str | None = None) -> Storage:
    """Returns the way to write and read the files of a store; `token` as of LocalStorage."""
    return root if isinstance(root, ObjectFolder) else LocalStorage(root, token)


def copy_files(paths: Iterable[str], source: StoreRoot, target: StoreRoot, sha256_of: Callable[[str], str]) -> None:
    """Copies files of a store to the same paths in another one.

    Args:
        paths: The paths in the store.
        source: The folder of the store that has them.
        target: The folder of the other store.
        sha256_of: The function that returns the sha256 that a file must have, by its path.

    Raises:
        StoreError: If one has another sha256.
    """

    def copy(path: str) -> None:
        data = storage_of(source).read(path)
        if hashlib.sha256(data).hexdigest() != sha256_of(path):
            raise StoreError(
                f"{source / path} is damaged (its sha256 is another); run the same command again with --verify-kept, "
                "which computes its rows again"
            )
        storage_of(target).put(path, [data])

    deque(many_at_once(target, copy, paths, SHARDS_AT_ONCE), maxlen=0)  # each is held in memory


def write_shards(
    root: StoreRoot,
    files: Iterable[tuple[str, Sequence[bytes | memoryview]]],
    sha256: Callable[[], str],
    *,
    many: bool,
    token: str | None,
) -> list[tuple[str, bool]]:
    """Writes the shards of a unit.

    Args:
        root: The store's folder.
        files: The path in the store and the contents, in parts, of each shard.
        sha256: The function that returns the sha256 of the shard that was taken from `files` last.
        many: True if they are so many that one sync of the whole file system is quicker than one of each.
        token: The name of this process among several that write the store; None if it is the only one.

    Returns:
        The path in the store of each, which is another one where its own is taken by a shard of other bytes, and
        whether this call has made it.

    Raises:
        OSError: If one can't be written.
    """
    if isinstance(root, ObjectFolder):
        shards = ((path, parts, sha256()) for path, parts in files)
        return [*many_at_once(root, lambda shard: _put_shard(root, *shard), shards)]
    known: set[str] = set()
    local = ((path_inside(root, path, known), parts) for path, parts in files)
    name = replace if token is None else create_shard
    named = write_all(local, below=root, many=many, token=token, name=name)
    return [(path.removeprefix(f"{root}/"), is_new) for path, is_new in named]


def _put_shard(root: ObjectFolder, path: str, parts: Sequence[bytes | memoryview], sha256: str) -> tuple[str, bool]:
    for place in (path, other_shard_path(path, sha256)):
        while not root.put_new(place, parts, sha256):
            there = root.stat(place)
            if there is None:  # removed meanwhile
                continue
            if (there.sha256 or (root / place).sha256()) == sha256:
                return place, False
            break
        else:
            return place, True
    raise StoreError(f"{root / place} has other bytes than its name says; delete it")
