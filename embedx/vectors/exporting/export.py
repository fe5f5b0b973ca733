"""`embedx.export(store, out)`: a store's vectors and keys in the files of other programs.

Shapes: N rows, n rows of a block, D embedding dimension.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedx.errors import ConfigError, unknown
from embedx.heartbeat import SILENT, Heartbeat
from embedx.paths import StorePath
from embedx.store.format.shards import dtype_name
from embedx.store.reading.reader import Store
from embedx.vectors.countdown import Countdown
from embedx.vectors.exporting.export_config import ExportConfig, FormatName
from embedx.vectors.exporting.export_folder import ExportFolder, refusal
from embedx.vectors.exporting.formats.base import Block, ExportJob, Vectors, Write
from embedx.vectors.output_place import check_outside
from embedx.vectors.vector_rows import KEYS, VectorRows, open_rows, unit_length

_BLOCK_BYTES = 32 * 1024**2
"""The bytes of vectors in a block, which is a row group of Parquet."""
_OF_THE_STORE = ("status", "reason", "shard", "row")
"""The columns that describe the store or an input that failed, and not an input that has a vector."""


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """The files and rows that an export has written."""

    store: StorePath
    fingerprint: str
    """The fingerprint of the store's recipe."""
    to: FormatName
    out: Path
    rows: dict[str, int]
    """The number of rows by split."""
    dim: int
    """The length of the vectors."""
    dtype: str
    """The type of the vectors, `float32` or `float16`."""
    files: dict[str, int]
    """The bytes of each file, by its path in the folder."""
    notes: tuple[str, ...]
    """Remarks for people: what is not as the store has it."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain JSON values."""
        counts = {"rows": sum(self.rows.values()), "splits": self.rows, "bytes": sum(self.files.values())}
        paths = {"store": str(self.store), "out": str(self.out), "seconds": round(self.seconds, 3)}
        return {**vars(self), **counts, **paths, "notes": list(self.notes)}


def run_export(store: Store, config: ExportConfig, heartbeat: Heartbeat = SILENT) -> ExportResult:
    """Writes a store's vectors with their keys to a folder, in the format of another program.

    Raises:
        ConfigError: If the settings are wrong or don't fit the store, a library is missing, or `out` is there already.
        StoreReplacedError: If another store takes this one's place.
        StoreError: If it is damaged, or the disk is full.
    """
    started = time.perf_counter()
    config.validate()
    check_outside("--out", config.out, store)
    folder = ExportFolder(config.out, overwrite=config.overwrite)
    write = _writer(config.to)
    heartbeat.say("reading the index")
    columns = _columns(store, config)
    rows = open_rows(store, config.split, name=config.name, where=config.where, columns=columns)
    job = _job(store, rows, columns, config)
    blocks = _told(_blocks(rows, job, normalize=config.normalize), job, heartbeat)
    about = {
        "to": config.to,
        "recipe": store.manifest.fingerprint,
        "settings": {name: value for name, value in config.to_json().items() if name in _SETTINGS},
        "rows": job.rows,
        "dim": job.dim,
        "dtype": job.dtype.name,
    }
    try:
        with folder.written() as temporary:
            write(temporary, job, blocks)
            heartbeat.say("bringing the files to disk")
            files = folder.commit(about)
    except OSError as error:
        raise refusal(config.out, error) from error
    return ExportResult(
        store=store.path,
        fingerprint=store.manifest.fingerprint,
        to=config.to,
        out=config.out,
        rows=job.rows,
        dim=job.dim,
        dtype=job.dtype.name,
        files=files,
        notes=tuple(job.notes),
        seconds=time.perf_counter() - started,
    )


_SETTINGS = ("split", "name", "where", "columns", "normalize", "list")
"""The settings that stand in an export's mark, beside its format and type."""


def _writer(to: FormatName) -> Write:
    """Returns the function that writes a format; raises a ConfigError if its library is missing."""
    try:
        write: Write = import_module(f"embedx.vectors.exporting.formats.to_{to}").write
    except ImportError as error:
        raise ConfigError(f'--to {to} needs a library that is missing ({error}): pip install "embedx[{to}]"') from error
    return write


def _columns(store: Store, config: ExportConfig) -> list[str]:
    """Returns the columns beside `split` and `key`; raises a ConfigError if the store has no such column."""
    found = store.column_names()
    valid = [name for name in found if name != "status"]
    ConfigError.check(
        [
            f"--columns: {unknown('column', name, valid, hint=f'in {store.path}')}"
            for name in config.columns
            if name not in valid
        ]
    )
    wanted = config.columns or [name for name in found if name not in _OF_THE_STORE]
    return [name for name in dict.fromkeys(wanted) if name not in KEYS]


def _job(store: Store, rows: VectorRows, columns: list[str], config: ExportConfig) -> ExportJob:
    """Returns the facts of an export."""
    stored = dtype_name(rows.stored.tensor(rows.table["shard"][0].as_py(), config.name).dtype)
    dtype = config.dtype or ("float16" if stored == "float16" and config.has_float16 else "float32")
    notes = []
    if config.dtype is None and stored not in ("float32", "float16"):
        notes.append(f"the store's vectors are {stored}, and are exported as float32")
    schema = rows.table.select([*KEYS, *columns]).schema.remove_metadata()
    for number, field in enumerate(schema):
        if pa.types.is_null(field.type):  # which few readers know
            schema = schema.set(number, pa.field(field.name, pa.string()))
    counts = pc.value_counts(rows.table["split"])
    return ExportJob(
        schema=schema,
        dim=rows.dim,
        dtype=np.dtype(dtype),
        rows={each["values"]: each["counts"] for each in counts.to_pylist()},
        list=config.list,
        recipe=store.recipe,
        notes=notes,
    )


def _blocks(rows: VectorRows, job: ExportJob, *, normalize: bool) -> Iterator[Block]:
    """Yields all rows in blocks of one split each."""
    table = rows.table.select(job.schema.names).cast(job.schema)
    bounds = np.cumsum([0, *job.rows.values()]).tolist()
    for start, tensor in rows.blocks(max(1, _BLOCK_BYTES // (4 * job.dim))):
        stop = start + len(tensor)
        vectors = (unit_length(tensor) if normalize else tensor).numpy()
        for split, (first, last) in zip(job.rows, pairwise(bounds), strict=True):
            begin, end = max(first, start), min(last, stop)
            if begin < end:
                own = table.slice(begin, end - begin)
                yield Block(split, begin, own, _of_type(vectors[begin - start : end - start], job.dtype, own))


def _of_type(vectors: Vectors, dtype: np.dtype[Any], table: pa.Table) -> Vectors:
    """Returns vectors [n, D] in a type; raises a ConfigError if a finite number is too large for it."""
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(vectors, dtype=dtype)
    if dtype == np.float16:
        overflows = np.isinf(found) & np.isfinite(vectors)
        if overflows.any():
            row = int(np.flatnonzero(overflows.any(axis=1))[0])
            raise ConfigError(
                f"--dtype float16: the vector of {table['key'][row].as_py()!r} has {np.abs(vectors[row]).max():g}, and "
                "float16 ends at 65504; give --dtype float32, or --normalize"
            )
    return found


def _told(blocks: Iterator[Block], job: ExportJob, heartbeat: Heartbeat) -> Iterator[Block]:
    """Yields the blocks, and says how far the export is and how long it will take."""
    countdown = Countdown(heartbeat, f"exporting {job.total:,} rows", job.total)
    for block in blocks:
        yield block
        countdown.add(len(block.vectors))
