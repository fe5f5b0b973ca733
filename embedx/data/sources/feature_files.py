"""Feature files, with a vector per row: `.npy` arrays [N, D], and `.safetensors` such as embedx's own shards."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError, safe_open

from embedx.data.reading.files import RejectedInputError, absolute, is_url, open_file, plain_name
from embedx.data.sources.base import SINGLE_SPLIT, TARGET, Run, Source, samples_table, size_and_time
from embedx.data.sources.kinds import SUFFIXES, SourceKind, SourceOptions
from embedx.data.sources.patterns import find_files, short_names
from embedx.errors import ConfigError
from embedx.names import EMBEDDINGS, TARGETS
from embedx.values import MAX_BYTES


class FeatureFile:
    """The rows of one file, which is mapped and not read whole.

    Raises:
        ConfigError: If the file can't be read, or its rows are not vectors or tokens.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            with _as_file(path) as local:
                open(local, "rb").close()  # as safetensors calls every error a file that is not there
                self.size, self.mtime_ns = size_and_time(os.fsencode(local))
                if plain_name(path).endswith(".npy"):
                    self._tensors: Any = None
                    self._features: Any = np.load(local, mmap_mode="r", allow_pickle=False)
                    self.rows, *shape = self._features.shape
                else:
                    self._tensors = safe_open(local, framework="pt")
                    self._features = self._tensors.get_slice(tensor_of_features(self._tensors.keys()))
                    self.rows, *shape = self._features.get_shape()
        except (OSError, ValueError, SafetensorError) as error:
            raise ConfigError(f"{path}: no features can be read from it ({error})") from error
        if len(shape) not in (1, 2):
            raise ConfigError(
                f"{path} has shape {[self.rows, *shape]}; give rows of vectors [N, D] or tokens [N, T, D]"
            )

    def __getitem__(self, row: int | slice) -> np.ndarray[Any, Any]:
        """Returns the features of one row, [D] or [T, D], or of several rows, [n, D] or [n, T, D]."""
        features = self._features[row]
        return np.asarray(features.float() if str(features.dtype) == "torch.bfloat16" else features)  # unknown to numpy

    @property
    def targets(self) -> list[int] | None:
        """The targets of the rows if the file has such a tensor, as embedx's shards do, or else None."""
        if self._tensors is None or TARGETS not in self._tensors.keys():  # noqa: SIM118  (not a mapping)
            return None
        targets: list[int] = self._tensors.get_tensor(TARGETS).tolist()
        return targets if len(targets) == self.rows else None


def tensor_of_features(names: Collection[str]) -> str:
    """Chooses the tensor of a `.safetensors` file that holds the features: the only one, or `embeddings`.

    Raises:
        ValueError: If there are several tensors and none has that name, or there is none.
    """
    if len(names) != 1 and EMBEDDINGS not in names:
        raise ValueError(f"it has the tensors {', '.join(names) or 'none'}, none of them named {EMBEDDINGS!r}")
    return next(iter(names)) if len(names) == 1 else EMBEDDINGS


@contextlib.contextmanager
def _as_file(location: str) -> Iterator[str]:
    """Yields the path of a file, or of a temporary copy of a URL; what is mapped from the copy outlives it."""
    if not is_url(location):
        yield location
        return
    with tempfile.NamedTemporaryFile(prefix="embedx-") as copy:
        with open_file(location) as file:
            shutil.copyfileobj(file, copy, 1 << 22)
        copy.flush()
        yield copy.name


class RowReader:
    """Reads rows of a feature file, each as the bytes of an `.npy` of its own."""

    def __init__(self) -> None:
        self._file: FeatureFile | None = None
        self._rows: np.ndarray[Any, Any] | None = None
        """The memory of the last run, which the next one takes, too."""

    def read(self, path: bytes, offset: int | None, size: int | None, most: int = MAX_BYTES) -> bytes:
        """Returns the row of number `offset`."""
        with _rejecting():
            return _encoded(self._open(path)[offset or 0])

    def read_run(self, path: bytes, first: int, count: int, most: int = MAX_BYTES) -> Run:
        """Returns the `count` rows from number `first` on, in memory that the next call overwrites."""
        with _rejecting():
            file = self._open(path)
            values = self._copied(file[first : first + count])
            encoded = _encoded(file[first])
        size = len(encoded) - values[0].nbytes
        if len(values) != count or len(encoded) > most or encoded[size:] != values[0].tobytes():
            raise RejectedInputError("the rows are no run")
        return Run(encoded[:size], values)

    def _copied(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Copies rows of a mapped file, which may change while they are hashed and decoded."""
        kept, count = self._rows, len(values)
        if kept is None or (kept.dtype, kept.shape[1:]) != (values.dtype, values.shape[1:]) or len(kept) < count:
            kept = self._rows = np.empty(values.shape, values.dtype)
        np.copyto(kept[:count], values)
        return kept[:count]

    def _open(self, path: bytes) -> FeatureFile:
        name = os.fsdecode(path)
        if self._file is None or self._file.path != name:
            self._file = FeatureFile(name)
        return self._file

    def __getstate__(self) -> dict[str, None]:
        return {"_file": None, "_rows": None}  # each process maps the files itself


@contextlib.contextmanager
def _rejecting() -> Iterator[None]:
    """Turns the errors of reading a feature file into RejectedInputErrors."""
    try:
        yield
    except (ConfigError, OSError, ValueError, IndexError, SafetensorError) as error:
        raise RejectedInputError(f"can't be read: {error}") from error


def _encoded(row: np.ndarray[Any, Any]) -> bytes:
    """Returns a row as the bytes of an `.npy`."""
    content = io.BytesIO()
    np.save(content, row, allow_pickle=False)
    return content.getvalue()


def open_rows(name: str | None, location: str, options: SourceOptions) -> Mapping[str, Source]:
    """Opens the rows of a file, or of all files that wildcards such as `features/*.npy` or braces name, file by file.

    The key is `FILE/ROW`; the target is the file's own, where it has one. Metadata: `file`, the file's name below the
    folder that all files share, and `parent`, the folders in that name, null if there are none.

    Raises:
        ConfigError: If there is no such file, or the inputs are to be images.
    """
    if options.content != "features":
        raise ConfigError(f"--data {location}: features need no backbone; give --backbone none")
    paths = [absolute(path) for path in find_files(location)]
    return {name or SINGLE_SPLIT: Source(("file", "parent"), RowReader(), lambda: _scan(paths))}


def _scan(paths: list[str]) -> pa.Table:
    return pa.concat_tables(map(_scan_file, paths, short_names(paths)))


def _scan_file(path: str, name: str) -> pa.Table:
    file = FeatureFile(path)
    count, targets = file.rows, file.targets
    columns = {
        "key": [f"{name}/{row:08d}" for row in range(count)],
        "path": [os.fsencode(path)] * count,
        "offset": range(count),
        "size": [(file.size or 0) // max(count, 1)] * count,
        "mtime_ns": [None if is_url(path) else file.mtime_ns] * count,
        TARGET: None if targets is None else [target if target >= 0 else None for target in targets],
        "file": [name] * count,
        "parent": [os.path.dirname(name) or None] * count,
    }
    return samples_table(columns, pa.int64())


KIND = SourceKind(
    lambda location: os.path.splitext(plain_name(location))[1] in SUFFIXES["features"] and not os.path.isdir(location),
    open_rows,
    reader=lambda location, options: RowReader(),
)
