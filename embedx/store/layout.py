"""Names and places in a store.

out/
  manifest.json
  index/train-00007.parquet              unit 7 of split train
  train/shard-00007.safetensors          its shard, without a group key
  train/cat/shard-00007.safetensors      its shard of group cat, with one

Names of splits and groups stand there percent-encoded, see `folder_name`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from embedx.config import LOCK

MANIFEST = "manifest.json"
INDEX = "index"
TEMPORARY_SUFFIX = ".embedx-tmp"

_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-. ")
_NO_NAME, _EMPTY_NAME = "%none", "%empty"
_LONGEST = 200
_DEVICE_NAME = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_INDEX_NAME = re.compile(r"(?P<split>.+)-(?P<unit>\d{5,})\.parquet")
_SHARD_NAME = re.compile(r"shard-(?P<unit>\d{5,})\.safetensors")


class Unit(NamedTuple):
    """The unit of work, of resume and of distribution: a contiguous run of one split's plan."""

    split: str
    number: int


class StoreTerms(NamedTuple):
    """What is the same for every unit of a store."""

    root: Path
    recipe: str
    """The recipe's fingerprint."""
    grouped: bool
    """Whether groups become sub-folders."""
    rows_per_unit: int
    base: Path | None = None
    """The store that this one is to replace, from which it takes the rows that stay."""


def folder_name(name: str | None) -> str:
    """Turns a split's or group's name into one folder name, by percent-encoding of its UTF-8 bytes.

    Different names give different folder names, none of them hidden, with a separator, or a device's. A name
    too long for a file system keeps its beginning, and ends in `%~` and the first 32 hex digits of its
    sha256; every other one is read back by `urllib.parse.unquote`. No group at all is `%none`, an empty name `%empty`.
    """
    if not name:
        return _NO_NAME if name is None else _EMPTY_NAME
    data = name.encode("utf-8", "surrogateescape")
    encoded = "".join(chr(byte) if byte in _SAFE else f"%{byte:02X}" for byte in data)
    if encoded[0] in ". " or _DEVICE_NAME.fullmatch(encoded):
        encoded = f"%{data[0]:02X}{encoded[1:]}"
    if encoded[-1] in ". ":
        encoded = f"{encoded[:-1]}%{data[-1]:02X}"
    if len(encoded) > _LONGEST:
        encoded = f"{encoded[: _LONGEST - 40]}%~{hashlib.sha256(data).hexdigest()[:32]}"
    return encoded


def index_path(unit: Unit) -> str:
    """The unit's index table, relative to the store."""
    return f"{INDEX}/{folder_name(unit.split)}-{unit.number:05d}.parquet"


def shard_path(unit: Unit, group: str | None, *, grouped: bool) -> str:
    """The shard of one of the unit's groups, relative to the store."""
    folder = folder_name(unit.split)
    if grouped:
        folder = f"{folder}/{folder_name(group)}"
    return f"{folder}/shard-{unit.number:05d}.safetensors"


def index_files(root: Path) -> dict[tuple[str, int], Path]:
    """The committed units: their index tables by (folder name of the split, unit number), in that order."""
    found = {}
    for path in (root / INDEX).glob("*.parquet"):
        if match := _INDEX_NAME.fullmatch(path.name):
            found[match["split"], int(match["unit"])] = path
    return dict(sorted(found.items()))


def shard_files(root: Path) -> Iterator[tuple[str, int, Path]]:
    """Every shard file that is there, committed or not, as (folder name of the split, unit number, path)."""
    for depth in ("*", "*/*"):
        for path in root.glob(f"{depth}/shard-*.safetensors"):
            if match := _SHARD_NAME.fullmatch(path.name):
                yield path.relative_to(root).parts[0], int(match["unit"]), path


def temporary_files(root: Path) -> Iterator[Path]:
    """Files that an interrupted write left behind."""
    for depth in ("", "*/", "*/*/"):
        yield from root.glob(f"{depth}.*{TEMPORARY_SUFFIX}")


def is_temporary(name: str) -> bool:
    """Whether a file of this name holds nothing of what is stored: the lock, or a file written by half."""
    return name == LOCK or (name.startswith(".") and name.endswith(TEMPORARY_SUFFIX))
