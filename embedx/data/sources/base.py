"""A source: a table of samples, and a reader of their bytes."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.fs import LocalFileSystem

from embedx.credentials import without_credentials
from embedx.paths import mark_of_commit
from embedx.system.machine import cores
from embedx.values import MAX_BYTES

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
"""The columns of every source's table: the sample's name, the place of its bytes, and the signs of a change.

`path` is bytes, as file systems have them, or a URL; `offset` is the input's place in that file, or null where the
input is all of it; `size` and `mtime_ns` are null where they are unknown."""

TARGET = "target"
"""The column that follows: class names as strings, numbers as integers, or all null."""

_CHUNK = 1 << 12
"""The number of files that are looked up, and of texts that are hashed, at a time."""


class Reader(Protocol):
    """Reads the bytes of a source's inputs, in a worker process; picklable."""

    def read(self, path: bytes, offset: int | None, size: int | None, most: int = MAX_BYTES) -> bytes:
        """Returns the bytes of the input that has these values in the columns of COMMON_SCHEMA.

        Raises:
            RejectedInputError: If the input can't be read, or is in a file of its own that has more than `most` bytes.
        """
        ...


class Run(NamedTuple):
    """Inputs that lie next to one another in a file, read at once; the bytes of each are the head and then its values.

    Shapes: n inputs.
    """

    head: bytes
    values: np.ndarray[Any, Any]
    """The values [n, ...], contiguous."""


@runtime_checkable
class RunReader(Reader, Protocol):
    """A reader that can read inputs which lie next to one another in a file at once."""

    def read_run(self, path: bytes, first: int, count: int, most: int = MAX_BYTES) -> Run:
        """Returns the inputs at the offsets from `first` on, of which `read` would return the same bytes one by one.

        Raises:
            RejectedInputError: If one of them can't be read, or has more than `most` bytes; `read` tells which and why.
        """
        ...


@runtime_checkable
class RangeReader(Reader, Protocol):
    """A reader some of whose inputs are the bytes of a file, or of a part of it, as they are."""

    def is_range(self, path: bytes, offset: int | None) -> bool:
        """Tells whether `read` returns what a FileReader reads there, which threads may then do."""
        ...


@dataclasses.dataclass(frozen=True)
class Source:
    """The inputs of one split."""

    metadata: tuple[str, ...]
    """The names of the columns after the common ones and the target; each can be a group key."""
    reader: Reader
    scan: Callable[[], pa.Table]
    """Lists the samples in source order: the columns of COMMON_SCHEMA, `target`, then the metadata.

    The columns of `written.WRITTEN` stand behind them.

    Raises a ConfigError if there are no samples, or they can't be listed."""
    advice: str = "make them unique"
    """The way out where keys occur more than once, for a message."""
    options: frozenset[str] = frozenset()
    """The fields of SourceOptions that it was read by, where its kind does not tell."""
    notices: Sequence[str] = ()
    """How the source was read, where the user may not expect it; complete once `scan` has returned."""


def samples_table(columns: Mapping[str, Any], target: pa.DataType) -> pa.Table:
    """Builds the table of a source; a common column that is left out or None is null, and all others are text."""
    schema = pa.schema([*COMMON_SCHEMA, (TARGET, target)])
    schema = pa.schema([*schema, *((name, pa.string()) for name in columns if name not in schema.names)])
    nothing = pa.nulls(len(columns["key"]))
    given = {name: column for name, column in columns.items() if column is not None}
    return pa.table(dict.fromkeys(schema.names, nothing) | given, schema=schema)


def as_text(name: bytes) -> str:
    r"""Returns a file's name as stores keep it: bytes that are not UTF-8 become `\xNN`, a URL has no credentials."""
    text = name.decode("utf-8", "backslashreplace")
    return without_credentials(text) if b"://" in name else text


def paths_as_text(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns a column of paths by `as_text`."""
    try:
        return texts_without_credentials(paths.cast(pa.string()))
    except pa.ArrowInvalid:  # one of them is not UTF-8
        return pa.chunked_array([[path and as_text(path) for path in paths.to_pylist()]], pa.string())


def texts_without_credentials(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns a column of texts, or of paths in bytes, in which URLs have no credentials."""

    def of_bytes(path: bytes) -> bytes:
        return os.fsencode(without_credentials(os.fsdecode(path)))

    urls = texts.filter(pc.match_substring(texts, "://"))
    if not any(pc.any(pc.match_substring(urls, sign)).as_py() for sign in "@?#"):  # as none has credentials
        return texts
    given = texts.to_pylist()
    kept = [text and (of_bytes(text) if isinstance(text, bytes) else without_credentials(text)) for text in given]
    return texts if kept == given else pa.chunked_array([kept], texts.type)


def as_path(text: str) -> bytes:
    """Returns the file name that `as_text` turns into this text; of two such names, the one that exists."""
    path = text.encode()
    if "\\x" not in text or os.path.exists(path):
        return path
    return re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), path)


def repeated(texts: pa.ChunkedArray) -> list[str]:
    """Returns the texts that occur more than once.

    It counts only the texts whose hash occurs twice: counting all would take ten times the memory and time.
    """
    hashes = np.empty(len(texts), np.int64)
    start = 0
    for batch in pa.table({"text": texts}).to_batches(_CHUNK):
        hashes[start : start + len(batch)] = [hash(text) for text in batch["text"].to_pylist()]
        start += len(batch)
    ordered = np.sort(hashes)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(twice):
        return []
    counts = pc.value_counts(texts.filter(pa.array(np.isin(hashes, twice))))
    found: list[str] = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
    return found


def sizes_and_times(paths: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Returns `size_and_time` of many files as two columns; a thread per core looks them up where they are many."""
    chunks = [batch["path"] for batch in pa.table({"path": paths}).to_batches(_CHUNK)]
    if len(chunks) > 1:
        with ThreadPoolExecutor(cores()) as threads:
            asked = list(threads.map(_ask, chunks))
    else:
        asked = list(map(_ask, chunks))
    sizes, times = (pa.chunked_array([answers[which] for answers in asked], pa.int64()) for which in (0, 1))
    return sizes, times


def _ask(paths: pa.Array) -> tuple[pa.Array, pa.Array]:
    encoded = paths.dictionary_encode()
    names = encoded.dictionary.to_pylist()
    try:  # pyarrow releases Python's lock, so that the threads run side by side
        found = [(info.size, info.mtime_ns) for info in LocalFileSystem().get_file_info(names)]
    except (OSError, pa.ArrowInvalid):  # for one of them
        found = [size_and_time(name) for name in names]
    found = [
        (size, mark_of_commit(name) if time is None else time) for name, (size, time) in zip(names, found, strict=True)
    ]
    sizes, times = (pa.array([answer[which] for answer in found], pa.int64()) for which in (0, 1))
    return sizes.take(encoded.indices), times.take(encoded.indices)


def size_and_time(path: bytes) -> tuple[int | None, int | None]:
    """Returns a file's size in bytes and modification time in ns; both None for a URL or a file that does not exist.

    Anything but a regular file has no size. The time of a URL with a commit is its `mark_of_commit`.
    """
    try:
        info = LocalFileSystem().get_file_info(path)
    except (OSError, pa.ArrowInvalid):
        return None, mark_of_commit(path)
    return info.size, info.mtime_ns if info.mtime_ns is not None else mark_of_commit(path)
