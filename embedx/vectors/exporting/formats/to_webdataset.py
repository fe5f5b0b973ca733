"""WebDataset: tars per split, in which each row is a file `NAME.npy`, its vector, and a file `NAME.json`, its columns.

WebDataset takes for the name of a sample all up to the first dot behind the last slash, and files of one name that
follow each other for one sample. So the name is the key with `%` escapes for all but letters, digits, `_` and `-`, as
`urllib.parse.unquote` reads them. An empty key, or one that stands in the split before, is followed by `~` and the
row's number. The JSON has the key as it is.
"""

from __future__ import annotations

import io
import json
import math
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embedx.arrow import spell
from embedx.vectors.exporting.formats.base import Block, ExportJob, by_split, split_file

_TAR_BYTES = 256 * 1000**2
_ROW_BYTES = 3 * 1024
"""The bytes of a row in a tar beside its vector: two heads, the padding, and the JSON."""
_ESCAPED = re.compile(rb"[^A-Za-z0-9_-]")


def write(folder: Path, job: ExportJob, blocks: Iterator[Block]) -> None:
    """Writes `train-000000.tar` and so on."""
    head = _npy_head(job)
    per_tar = max(1, _TAR_BYTES // (job.row_bytes + _ROW_BYTES))
    for split, own in by_split(blocks):
        names = _Names()
        samples = (sample for block in own for sample in _samples(block))
        for number in range(-(-job.rows[split] // per_tar)):
            with tarfile.open(folder / f"{split_file(split)}-{number:06d}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
                for _, (place, row, vector) in zip(range(per_tar), samples, strict=False):
                    name = names.of(row["key"], place)
                    _add(tar, f"{name}.npy", head + vector)
                    _add(tar, f"{name}.json", json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace"))


class _Names:
    """The names of a split's samples, no two of which are equal."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def of(self, key: str, place: int) -> str:
        """Returns the name of the row with this key, whose number is `place`."""
        data = key.encode(errors="surrogatepass")
        name = _ESCAPED.sub(lambda found: b"%%%02X" % found[0][0], data).decode()
        if not key or data in self._seen:
            return f"{name}~{place}"
        self._seen.add(data)
        return name


def _samples(block: Block) -> Iterator[tuple[int, dict[str, Any], bytes]]:
    """Yields each row's number, its columns as JSON values, and its vector's bytes."""
    columns = [_as_json(column) for column in block.table.columns]
    rows = zip(*columns, block.vectors, strict=True)
    for place, (*values, vector) in enumerate(rows, block.start):
        yield place, dict(zip(block.table.column_names, values, strict=True)), vector.tobytes()


def _as_json(column: pa.ChunkedArray) -> list[Any]:
    kind = column.type
    if pa.types.is_floating(kind):
        return [value if value is None or math.isfinite(value) else str(value) for value in column.to_pylist()]
    is_json = pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_string(kind)
    return list((column if is_json else spell(column)).to_pylist())


def _npy_head(job: ExportJob) -> bytes:
    head = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(job.dtype), "fortran_order": False, "shape": (job.dim,)}
    np.lib.format.write_array_header_1_0(head, described)
    return head.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
