"""The parts of a shard in a bucket that are needed to read some of its rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from embedx.store.format.object_copy import ObjectCopy, Range

if TYPE_CHECKING:
    import numpy as np

_LENGTH_BYTES = 8
"""The bytes at a shard's beginning that say how long its header is."""
_HEADER = 16 * 1024
"""The bytes that are fetched for the header at first; most headers have fewer than 1,000."""
_LONGEST_HEADER = 100_000_000
"""The bytes of the longest header that safetensors reads."""


class WantedRows(NamedTuple):
    """Rows of a tensor of a shard."""

    name: str
    """The name of the tensor."""
    rows: np.ndarray[tuple[int], np.dtype[np.int64]]
    """The numbers of the rows, which the shard may lack."""


def bring_header(copy: ObjectCopy) -> None:
    """Brings the header of a shard, if it has one that can be read."""
    copy.bring([(0, min(copy.size, _HEADER))])
    copy.bring([(0, min(copy.size, _LENGTH_BYTES + _length(copy)))])


def bring_rows(copy: ObjectCopy, wanted: WantedRows) -> None:
    """Brings rows of a shard whose header was brought, and found to be right."""
    if len(wanted.rows):
        copy.bring(_ranges(copy, wanted))


def _length(copy: ObjectCopy) -> int:
    length = int.from_bytes(copy.read(0, min(copy.size, _LENGTH_BYTES)), "little")
    return length if length <= _LONGEST_HEADER else 0


def _ranges(copy: ObjectCopy, wanted: WantedRows) -> Iterator[Range]:
    """Yields the place of each row in the file."""
    begin = _LENGTH_BYTES + _length(copy)
    described: Any = json.loads(copy.read(_LENGTH_BYTES, begin))
    if wanted.name not in described:
        return
    rows, (first, last) = described[wanted.name]["shape"][0], described[wanted.name]["data_offsets"]
    size = (last - first) // rows
    for row in sorted(set(wanted.rows.tolist())):
        if 0 <= row < rows:
            at = begin + first + row * size
            yield at, at + size
