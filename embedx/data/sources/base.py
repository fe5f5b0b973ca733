"""What every kind of source is: a table of samples, and a way to read their bytes."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, Self

import pyarrow as pa

from embedx.config import ExtractConfig
from embedx.data.files import is_url

SINGLE_SPLIT = "all"
"""The split of a source that has no name and names none."""

COMMON_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("path", pa.binary()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
    ]
)
"""Columns of every source's table: the identity, where to read, and how to tell that it changed.

`path` is bytes, as file systems have them, or a URL; `offset` is null, or where in it the input is; `size` and
`mtime_ns` are null for what can't be asked."""

TARGET = "target"
"""The column behind those: strings, which become numbers, integers, or all null."""


class Reader(Protocol):
    """Reads the bytes of a source's inputs, in a worker process; picklable."""

    def read(self, path: bytes, offset: int | None, size: int | None) -> bytes:
        """The bytes of the input of these three columns.

        Raises:
            RejectedInputError: If it can't be read.
        """
        ...


class Source(Protocol):
    """Where the inputs of one split come from."""

    metadata: tuple[str, ...]
    """Names of the columns behind the common ones and the target; each can be a group key."""
    reader: Reader

    def scan(self) -> pa.Table:
        """Lists the samples in source order: the columns of COMMON_SCHEMA, `target`, then the metadata.

        Raises:
            ConfigError: If there is nothing there, or it can't be listed.
        """
        ...


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """How sources are to be read, beyond where they are; the fields are those of ExtractConfig."""

    path_column: str | None = None
    key_column: str | None = None
    target_column: str | None = None
    split_column: str | None = None
    root: str | None = None
    null: bool = False
    backbone: str = ""
    """`none` where the inputs are features."""

    @classmethod
    def of(cls, config: ExtractConfig) -> Self:
        """What the settings say of it."""
        return cls(**{field.name: getattr(config, field.name) for field in dataclasses.fields(cls)})


class SourceKind(NamedTuple):
    """One kind of source, as `parse_data` knows it."""

    matches: Callable[[str], bool]
    """Whether what follows `[NAME=]` in a `--data` is of this kind."""
    open: Callable[[str | None, str, SourceOptions], Mapping[str, Source]]
    """From the split's name (None if none is given), that text and the options to the sources by split.

    Raises a ConfigError, with what to do about it, if there is no such thing."""
    plural: str = ""
    """What messages call several of this kind; needed where it has options."""
    options: frozenset[str] = frozenset()
    """Fields of SourceOptions for this kind alone: giving one where no source is of this kind is a fault."""
    once: bool = False
    """Whether a second source of this kind is a fault."""
    reader: Reader | None = None
    """Reads inputs of this kind by where the index tables say they are; None if only an opened source has one."""


def as_text(name: bytes) -> str:
    r"""A file's name as text; bytes that are not UTF-8 become `\xNN`."""
    return name.decode("utf-8", "backslashreplace")


def as_path(text: str) -> bytes:
    """The file's name that `as_text` has made this of; where two names give that text, the one that is there."""
    path = text.encode()
    if "\\x" not in text or os.path.exists(path):
        return path
    return re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), path)


def size_and_time(path: bytes) -> tuple[int | None, int | None]:
    """A file's size in bytes and time of modification in ns; (None, None) for a URL, and if reading it will fail."""
    if is_url(path):
        return None, None
    try:
        status = os.stat(path)
    except OSError:
        return None, None
    return status.st_size, status.st_mtime_ns
