"""What a disk may hold after a power cut, by a strict model of file systems.

Data are on the disk once their file was synced; until then they may be lost, torn or zeros. A name is there (or gone,
or another's) once its folder was synced; until then each change of a folder may be lost by itself, or all from one on.
Renaming is one change. Syncing a file system syncs all of it.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Self


class Record(NamedTuple):
    """A call that succeeded."""

    op: str
    node: int
    """The inode that was written or synced, or that the new name leads to."""
    offset: int
    first: str
    second: str
    data: bytes


def read_trace(path: Path, root: Path) -> Iterator[Record]:
    """Yields the calls that concern files below `root`."""
    with path.open("rb") as file:
        while line := file.readline():
            op, *numbers = line.decode().split()
            node, offset, *lengths = map(int, numbers)
            first, second, data = (file.read(length) for length in lengths)
            if os.fsdecode(first).startswith(str(root)):
                assert not op.startswith("unknown"), (op, first)
                yield Record(op, node, offset, os.fsdecode(first), os.fsdecode(second), data)


class Change(NamedTuple):
    """A change of folders, which is there as a whole or not at all."""

    number: int
    entries: list[tuple[int, str, int | None]]
    """(folder, name, node): None removes the name."""


@dataclasses.dataclass
class File:
    """A file's bytes on the disk, and what was written since: (offset, data), or (length, None) where it was cut."""

    data: bytes = b""
    since: list[tuple[int, bytes | None]] = dataclasses.field(default_factory=list)

    def after(self, writes: Iterable[tuple[int, bytes | None]]) -> bytes:
        data = bytearray(self.data)
        for offset, written in writes:
            if written is None:
                data = bytearray(data[:offset].ljust(offset, b"\0"))
            else:
                data[len(data) :] = bytes(max(0, offset - len(data)))
                data[offset : offset + len(written)] = written
        return bytes(data)

    def cut(self, chance: random.Random) -> bytes:
        """Its bytes after a power cut."""
        whole = self.after(self.since)
        kind = chance.choice(["lost", "whole", "prefix", "zeros", "blocks"]) if self.since else "whole"
        if kind == "lost":
            return self.data
        if kind == "prefix":
            return whole[: chance.randint(0, len(whole))]
        if kind == "zeros":
            return self.data[: len(whole)].ljust(len(whole), b"\0")
        if kind == "blocks":
            blocks = range(0, len(whole), 512)
            old = self.data.ljust(len(whole), b"\0")
            return b"".join((whole if chance.random() < 0.5 else old)[at : at + 512] for at in blocks)[: len(whole)]
        return whole


class Disk:
    """A folder and all below it, as the processes see it and as the disk has it.

    Args:
        root: The folder as it is before the first record; all of that is on the disk.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._names: dict[int, int] = {}
        """The node that an inode's number stands for now: numbers are used again."""
        self.files: dict[int, File] = {}
        self._live: dict[int, dict[str, int]] = {}
        """The folders as the processes see them."""
        self._durable: dict[int, dict[str, tuple[int, int | None]]] = {}
        """The folders as the disk has them: (number of the change, node) of each name."""
        self._pending: list[tuple[Change, set[int]]] = []
        """Changes that are not on the disk, with the folders that are yet to be synced for it."""
        self._count = 0
        self.root = self._new(root.lstat().st_ino, is_folder=True)
        self._load(root, self.root)

    def _load(self, folder: Path, node: int) -> None:
        for path in sorted(folder.iterdir()):
            inode = path.lstat().st_ino
            if path.is_dir():
                child = self._new(inode, is_folder=True)
                self._load(path, child)
            elif inode in self._names:
                child = self._names[inode]
            else:
                child = self._new(inode, is_folder=False)
                self.files[child].data = path.read_bytes()
            self._live[node][path.name] = child
            self._durable[node][path.name] = (0, child)

    def _new(self, inode: int, *, is_folder: bool) -> int:
        self._count += 1
        node = self._names[inode] = self._count
        if is_folder:
            self._live[node], self._durable[node] = {}, {}
        else:
            self.files[node] = File()
        return node

    def apply(self, record: Record) -> None:
        """Takes over what a call has done."""
        if record.op in ("write", "truncate"):
            written = record.data if record.op == "write" else None
            self.files[self._names[record.node]].since.append((record.offset, written))
        elif record.op.startswith("fsync"):
            self._sync(self._names[record.node])
        elif record.op == "syncfs":
            for node in [*self.files, *self._live]:
                self._sync(node)
        else:
            self._change(record)

    def _sync(self, node: int) -> None:
        if node in self.files:
            file = self.files[node]
            file.data, file.since = file.after(file.since), []
            return
        left = []
        for change, folders in self._pending:
            folders.discard(node)
            if folders:
                left.append((change, folders))
            else:
                _bring(self._durable, change)
        self._pending = left

    def _change(self, record: Record) -> None:
        first, second = self._place(record.first), self._place(record.second) if record.second else None
        node = self._live[first[0]].get(first[1])
        entries: list[tuple[int, str, int | None]]
        if record.op in ("create", "mkdir"):
            entries = [(*first, self._new(record.node, is_folder=record.op == "mkdir"))]
        elif record.op in ("unlink", "rmdir"):
            entries = [(*first, None)]
        elif second is None:
            raise AssertionError(record)
        elif record.op == "link":
            entries = [(*second, node)]
        elif record.op == "rename":
            entries = [(*first, None), (*second, node)]
        else:
            entries = [(*first, self._live[second[0]][second[1]]), (*second, node)]
        self._count += 1
        self._pending.append((Change(self._count, entries), {folder for folder, _, _ in entries}))
        for folder, name, target in entries:
            if target is None:
                del self._live[folder][name]
            else:
                self._live[folder][name] = target

    def _place(self, path: str) -> tuple[int, str]:
        """The folder's node and the name."""
        *folders, name = os.path.relpath(path, self._root).split("/")
        node = self.root
        for folder in folders:
            node = self._live[node][folder]
        return node, name

    def contents(self, name: str) -> Iterator[bytes]:
        """The bytes of all files that have this name now, as the processes see them."""
        for entries in self._live.values():
            if (node := entries.get(name)) in self.files:
                yield self.files[node].after(self.files[node].since)

    def cut(self, chance: random.Random) -> dict[str, bytes | None]:
        """What the disk may have after a power cut now: the bytes by path below the root; None for a folder."""
        durable = copy.deepcopy(self._durable)
        share = chance.choice([0.0, 0.2, 0.5, 0.8, 1.0])
        if chance.random() < 0.5:
            kept = [change for change, _ in self._pending if chance.random() < share]
        else:
            ends = {folder: chance.random() for folder in durable}
            kept = self._prefixes(ends)
        for change in kept:
            _bring(durable, change)
        bytes_of = {node: file.cut(chance) for node, file in self.files.items()}
        return dict(self._tree(self.root, "", durable, bytes_of))

    def durable(self) -> dict[str, bytes | None]:
        """What the disk has in any case."""
        return dict(self._tree(self.root, "", self._durable, {node: file.data for node, file in self.files.items()}))

    def _prefixes(self, ends: dict[int, float]) -> list[Change]:
        """The changes up to one that is drawn for each folder."""
        kept = []
        for folder, end in ends.items():
            mine = [change for change, folders in self._pending if min(each for each, _, _ in change.entries) == folder]
            kept += mine[: round(end * len(mine))]
        return kept

    def _tree(
        self, node: int, path: str, durable: dict[int, dict[str, tuple[int, int | None]]], bytes_of: dict[int, bytes]
    ) -> Iterator[tuple[str, bytes | None]]:
        for name, (_, child) in durable[node].items():
            if child in bytes_of:
                yield path + name, bytes_of[child]
            elif child is not None:
                yield path + name, None
                yield from self._tree(child, f"{path}{name}/", durable, bytes_of)


def _bring(folders: dict[int, dict[str, tuple[int, int | None]]], change: Change) -> None:
    """Brings a change to disk; a later one of the same name stands."""
    for folder, name, node in change.entries:
        if folders[folder].get(name, (0, None))[0] <= change.number:
            folders[folder][name] = (change.number, node)


def lay_out(tree: dict[str, bytes | None], folder: Path) -> None:
    """Makes the files and folders, below a folder that must not exist."""
    folder.mkdir(parents=True)
    for path, data in tree.items():
        if data is None:
            (folder / path).mkdir(exist_ok=True)
        else:
            (folder / path).write_bytes(data)


class Trace(NamedTuple):
    """A run's changes of a folder, and the folder before them."""

    disk: Disk
    records: list[Record]

    def without(self, op: str) -> Self:
        """The same, as if a call had not been made."""
        return self._replace(records=[record for record in self.records if record.op != op])
