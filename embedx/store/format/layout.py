"""Names and paths in a store.

out/
  manifest.json
  index/train-00007.parquet              unit 7 of split train
  train/shard-00007.safetensors          its shard, without a group key
  train/cat/shard-00007.safetensors      its shard of group cat, with one
  train/shard-00007~1f2e3d4c.safetensors its shard, where another attempt at the unit had given that name to other bytes
  .train-00007.journal.embedx-tmp        its rows so far, while it is under way and takes long
  .train-00007.<token>.journal.embedx-tmp   the same, where several processes write

Names of splits and groups are percent-encoded, see `folder_name` and `GroupFolders`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from embedx.errors import NotAStoreError
from embedx.names import INDEX, LOCK, PROBE
from embedx.names import MANIFEST as MANIFEST
from embedx.paths import BucketPath, StorePath
from embedx.store.format.no_follow import regular_files
from embedx.store.format.object_folder import ObjectFolder
from embedx.store.format.open_folder import open_folder
from embedx.store.format.store_folder import StoreFile, StoreFolder

TEMPORARY_SUFFIX = ".embedx-tmp"
DEPTH = 2
"""The number of folders in which a store's file is, at most."""

_UNSAFE = re.compile(r"[^A-Za-z0-9_\-. ]")
_NO_NAME, _EMPTY_NAME = "%none", "%empty"
_LONGEST = 200
_DEVICE_NAME = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9]) *(\..*)?", re.IGNORECASE)
_UNIT = r"(?P<unit>[0-9]{5}|[1-9][0-9]{5,17})"
_INDEX_NAME = re.compile(rf"(?P<split>[ -~]+)-{_UNIT}\.parquet")
_JOURNAL_NAME = re.compile(rf"\.(?P<split>[ -~]+)-{_UNIT}(\.[0-9a-f]+)?\.journal{re.escape(TEMPORARY_SUFFIX)}")
_SHARD_NAME = re.compile(rf"shard-{_UNIT}(~[0-9a-f]{{8}})?\.safetensors")
_OTHER_SHARD = re.compile(r"(?P<stem>.*)~(?P<digest>[0-9a-f]{8})(?P<suffix>\.safetensors)", re.DOTALL)
_DIGEST_DIGITS = 8


StoreRoot: TypeAlias = Path | ObjectFolder
"""The folder of a store that is written; `/` gives a file of it."""
StoredFile: TypeAlias = Path | StoreFile
"""A file of a store that is written."""


class Unit(NamedTuple):
    """The unit of work, of resume and of distribution: a contiguous run of one split's plan."""

    split: str
    number: int


class WriterTerms(NamedTuple):
    """The terms of a process that writes units."""

    token: str | None = None
    """The hex digits that name it among several that write the store; None if it is the only one."""
    environment: dict[str, Any] | None = None
    """Its versions and its hardware, for the index tables of its units; None leaves them out."""
    groups: Mapping[str, Sequence[str]] = {}
    """The groups of each split whose names differ in case alone from another one's, in the order of the plan."""


class StoreTerms(NamedTuple):
    """The terms that are the same for every unit of a store."""

    root: StoreRoot
    recipe: str
    """The recipe's fingerprint."""
    grouped: bool
    """True if groups become sub-folders."""
    rows_per_unit: int
    base: StoreRoot | None = None
    """The store that this one will replace, from which it takes the rows that stay; None if there is none."""
    journal_seconds: float | None = None
    """The age of a row at which it is written to its unit's journal; None if there are no journals."""
    about: str | None = None
    """The `about` of the store's manifest; None leaves it out of the index tables."""
    writer: WriterTerms = WriterTerms()


def folder_name(name: str | None) -> str:
    """Turns a split's or group's name into one folder name, by percent-encoding of its UTF-8 bytes.

    Different names give different folder names, and none is hidden, has a separator or is a device's. A name that is
    too long for a file system keeps its beginning, and ends in `%~` and the first 32 hex digits of its sha256; every
    other one is read back by `urllib.parse.unquote`. No group becomes `%none`, and an empty name `%empty`.
    """
    if not name:
        return _NO_NAME if name is None else _EMPTY_NAME
    data = _utf8(name)
    encoded = _UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in _utf8(found[0])), name)
    if encoded[0] in ". " or _DEVICE_NAME.fullmatch(encoded):
        encoded = f"%{data[0]:02X}{encoded[1:]}"
    if encoded[-1] in ". ":
        encoded = f"{encoded[:-1]}%{data[-1]:02X}"
    return encoded if len(encoded) <= _LONGEST else _with_digest(encoded, data)


class GroupFolders:
    """Gives each group of a split its own folder, also on file systems that ignore case.

    Among groups whose names differ in case alone, the first gets the folder of its name. The others get that of a
    name that is too long, with their sha256.

    Args:
        first: The groups that come first, in the order of the plan; the others come in the order of the calls.
    """

    def __init__(self, first: Iterable[str] = ()) -> None:
        self._owners: dict[str, str] = {}
        """The first name of each spelling, by the name in lower case."""
        for group in first:
            self.of(group)

    def of(self, group: str | None) -> str:
        """Returns the name of the group's folder."""
        name = folder_name(group)
        owner = self._owners.setdefault(name.lower(), name)
        return name if group is None or owner == name else _with_digest(name, _utf8(group))


def alike(groups: Iterable[str | None]) -> list[str]:
    """Returns those of a plan's groups whose folders' names differ in case alone from another one's, in order."""
    names = {group: folder_name(group).lower() for group in groups if group is not None}
    counts = Counter(names.values())
    return [group for group, name in names.items() if counts[name] > 1]


def index_path(unit: Unit) -> str:
    """Returns the path of the unit's index table in the store."""
    return f"{INDEX}/{folder_name(unit.split)}-{unit.number:05d}.parquet"


def shard_path(unit: Unit, group_folder: str | None) -> str:
    """Returns the path of the unit's shard in the store: in a group's folder, or in the split's without one."""
    folder = folder_name(unit.split) + ("" if group_folder is None else f"/{group_folder}")
    return f"{folder}/shard-{unit.number:05d}.safetensors"


def other_shard_path(path: str, sha256: str) -> str:
    """Returns the path that a shard gets where its own is taken by a shard of other bytes."""
    stem, suffix = os.path.splitext(path)
    return f"{stem}~{sha256[:_DIGEST_DIGITS]}{suffix}"


def journal_path(unit: Unit, token: str | None = None) -> str:
    """Returns the path of the unit's journal in the store; several processes that write have one each."""
    name = f"{folder_name(unit.split)}-{unit.number:05d}" + (f".{token}" if token else "")
    return f".{name}.journal{TEMPORARY_SUFFIX}"


def can_be_shard(path: str, unit: Unit, group: str | None, sha256: str | None = None) -> bool:
    """Tells whether a shard of the unit and group can have this path in a store, grouped or not.

    Args:
        path: The path in the store.
        unit: The unit of the shard.
        group: The group of the shard; None for none.
        sha256: The shard's sha256, with which an `other_shard_path` must go; None if it isn't known.
    """
    folder = folder_name(group)
    other = None if group is None else _with_digest(folder, _utf8(group))
    tagged = _OTHER_SHARD.fullmatch(path)
    if tagged and sha256 is not None and tagged["digest"] != sha256[:_DIGEST_DIGITS]:
        return False
    place = tagged["stem"] + tagged["suffix"] if tagged else path
    return place in (shard_path(unit, folder), shard_path(unit, other))


def has_rows(root: StorePath | ObjectFolder) -> bool:
    """Tells whether a run has committed a unit in a folder, or journalled rows of one."""
    return bool(index_files(root) or journal_files(root))


def staging_folder(out: Path) -> Path:
    """Returns the folder in which the store that will replace the one at `out` is written."""
    return out.parent / f".{out.name}.embedx-new"


def store_root(place: StorePath | ObjectFolder) -> StoreRoot:
    """Returns the folder of the store at a place."""
    return ObjectFolder(place) if isinstance(place, BucketPath) else place


def is_there(root: StoreRoot, relative: str) -> bool:
    """Tells whether a store has a file, or a link in its place."""
    return os.path.lexists(root / relative) if isinstance(root, Path) else root.size(relative) is not None


def is_index_path(path: str) -> bool:
    """Tells whether an index table can have this path in a store."""
    folder, _, name = path.partition("/")
    return folder == INDEX and "/" not in name and _INDEX_NAME.fullmatch(name) is not None


def index_files(root: StorePath | ObjectFolder) -> dict[tuple[str, int], StoredFile]:
    """Returns the index tables of the committed units by (folder name of the split, unit number), in that order."""
    try:
        return {place: _of_root(root, file) for place, file in index_tables(open_folder(root)).items()}
    except NotAStoreError:
        return {}


def journal_files(root: StorePath | ObjectFolder) -> dict[tuple[str, int], list[StoredFile]]:
    """Returns the journals of units by (folder name of the split, unit number), in that order."""
    try:
        found = journals(open_folder(root))
    except NotAStoreError:
        return {}
    return {place: [_of_root(root, file) for file in files] for place, files in found.items()}


def _of_root(root: StorePath | ObjectFolder, file: StoreFile) -> StoredFile:
    """Returns a file of a folder by its path, as the folder that was opened here is closed soon."""
    return root / file.relative if isinstance(root, Path) else file


def index_tables(folder: StoreFolder, named: Iterable[str] | None = None) -> dict[tuple[str, int], StoreFile]:
    """Returns the index tables as `index_files` does, for a store that is held open: those on disk, or those named."""
    there = (f"{INDEX}/{name}" for name in folder.files(INDEX)) if named is None else named
    return {place: files[0] for place, files in _unit_files(folder, there, _INDEX_NAME).items()}


def journals(folder: StoreFolder) -> dict[tuple[str, int], list[StoreFile]]:
    """Returns the journals as `journal_files` does, for a store that is held open."""
    return _unit_files(folder, folder.files(), _JOURNAL_NAME)


def _unit_files(
    folder: StoreFolder, paths: Iterable[str], pattern: re.Pattern[str]
) -> dict[tuple[str, int], list[StoreFile]]:
    """Returns the files whose names have this pattern, by the `split` and the `unit` in the name."""
    found: dict[tuple[str, int], list[StoreFile]] = {}
    for path in sorted(paths):
        if match := pattern.fullmatch(os.path.basename(path)):
            found.setdefault((match["split"], int(match["unit"])), []).append(folder / path)
    return dict(sorted(found.items()))


def shard_files(root: StoreRoot) -> Iterator[tuple[str, int, str]]:
    """Yields every shard file, committed or not, as (folder name of the split, unit number, path in the store)."""
    for path in _files(root):
        split, _, below = path.partition("/")
        match = _SHARD_NAME.fullmatch(os.path.basename(below))
        if match:
            yield split, int(match["unit"]), path


def temporary_files(root: StoreRoot) -> Iterator[str]:
    """Yields the paths in the store of the files that an interrupted write left behind."""
    names = ((path, os.path.basename(path)) for path in _files(root))
    return (path for path, name in names if name != LOCK and is_temporary(name))


def _files(root: StoreRoot) -> Iterator[str]:
    """Yields the path in the store of each file that can be of one."""
    if isinstance(root, ObjectFolder):
        return (path for path in root.list() if path.count("/") <= DEPTH)
    return (path.relative_to(root).as_posix() for path in regular_files(root, DEPTH))


def is_temporary(name: str) -> bool:
    """Tells whether a file of this name stores nothing: it is the lock, or was written by half."""
    return name in (LOCK, PROBE) or (name.startswith(".") and name.endswith(TEMPORARY_SUFFIX))


def _utf8(name: str) -> bytes:
    """Encodes any string as bytes of its own, lone surrogates included."""
    return name.encode("utf-8", "surrogatepass")


def _with_digest(encoded: str, data: bytes) -> str:
    return f"{encoded[: _LONGEST - 40]}%~{hashlib.sha256(data).hexdigest()[:32]}"
