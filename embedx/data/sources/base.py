"""What every kind of source is: a table of samples, and a way to read their bytes."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.fs import LocalFileSystem

from embedx.system.machine import cores

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

_CHUNK = 1 << 12
"""Files that are asked for, and texts that are hashed, at a time."""


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


def as_text(name: bytes) -> str:
    r"""A file's name as text; bytes that are not UTF-8 become `\xNN`."""
    return name.decode("utf-8", "backslashreplace")


def as_path(text: str) -> bytes:
    """The file's name that `as_text` has made this of; where two names give that text, the one that is there."""
    path = text.encode()
    if "\\x" not in text or os.path.exists(path):
        return path
    return re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), path)


def repeated(texts: pa.ChunkedArray) -> list[str]:
    """The texts that stand there more than once.

    By their hashes first, and of the texts only those whose hash is there twice: a table of all would take ten times
    the memory, and the time.
    """
    hashes = np.empty(len(texts), np.int64)
    start = 0
    for batch in pa.table({"text": texts}).to_batches(_CHUNK):
        hashes[start : start + len(batch)] = [hash(text) for text in batch["text"].to_pylist()]
        start += len(batch)
    ordered = np.sort(hashes)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    counts = pc.value_counts(texts.filter(pa.array(np.isin(hashes, twice))))
    found: list[str] = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
    return found


def sizes_and_times(paths: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """`size_and_time` of many files, as two columns; a thread per core asks."""
    chunks = [batch["path"] for batch in pa.table({"path": paths}).to_batches(_CHUNK)]
    with ThreadPoolExecutor(cores()) as threads:
        asked = list(threads.map(_ask, chunks))
    sizes, times = (pa.chunked_array([answers[which] for answers in asked], pa.int64()) for which in (0, 1))
    return sizes, times


def _ask(paths: pa.Array) -> tuple[pa.Array, pa.Array]:
    encoded = paths.dictionary_encode()
    names = encoded.dictionary.to_pylist()
    try:  # without Python's lock, during which no other thread could ask
        found = [(info.size, info.mtime_ns) for info in LocalFileSystem().get_file_info(names)]
    except (OSError, pa.ArrowInvalid):  # for one of them
        found = [size_and_time(name) for name in names]
    sizes, times = (pa.array([answer[which] for answer in found], pa.int64()) for which in (0, 1))
    return sizes.take(encoded.indices), times.take(encoded.indices)


def size_and_time(path: bytes) -> tuple[int | None, int | None]:
    """A file's size in bytes and time of modification in ns; both None for a URL, and for what is not there.

    What is no plain file has no size.
    """
    try:
        info = LocalFileSystem().get_file_info(path)
    except (OSError, pa.ArrowInvalid):
        return None, None
    return info.size, info.mtime_ns
