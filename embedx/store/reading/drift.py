"""How far the rows of one tensor lie apart in two stores.

The drift of two vectors is 1 - their cosine similarity: 0 for one direction, 1 for a right angle, 2 for opposite ones.
Shapes: N rows, D numbers per row; of more dimensions than one, a row counts as one long vector.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from embedx.errors import ConfigError
from embedx.store.reading.stored_rows import StoredRows

T = TypeVar("T")
Pair: TypeAlias = tuple[T, T]
"""The values of the first and of the second store."""

_FURTHEST = 10
"""The number of rows that are named."""
_CHUNK_BYTES = 4 << 20
"""The bytes of one store's numbers, in float64, that are compared at a time."""


@dataclasses.dataclass(frozen=True)
class DriftingRow:
    """One row, and how far it has moved."""

    split: str
    key: str
    path: str | None
    """The path of the input, as the second store has it."""
    drift: float


@dataclasses.dataclass(frozen=True)
class Drift:
    """How far the rows of one tensor lie apart; rows that are not finite in one of the stores have no part in it."""

    rows: int
    """The number of rows that were compared."""
    bit_equal: int
    """The number of rows of the same type and the same bits."""
    not_finite: int
    """The number of rows with NaN or infinity in one of the stores."""
    zero: int
    """The number of rows that are all zero in one of the stores; from there to another vector the drift counts as 1."""
    median: float | None
    """The median drift; None if no row is finite."""
    worst: float | None
    """The largest drift; None if no row is finite."""
    largest_difference: float | None
    """The largest difference between two numbers; None if no row is finite."""
    furthest: tuple[DriftingRow, ...]
    """The rows with the largest drift, largest first, without rows that have none."""


class DriftPart(NamedTuple):
    """The comparison of some rows of one tensor."""

    drift: np.ndarray[Any, np.dtype[np.float64]]
    """The drift of each row that is finite in both stores."""
    bit_equal: int
    not_finite: int
    zero: int
    largest_difference: float
    furthest: tuple[DriftingRow, ...]

    @classmethod
    def merged(cls, parts: Iterable[DriftPart]) -> DriftPart:
        """Puts the comparisons of several groups of rows together."""
        drifts, bit_equal, not_finite, zero, largest, furthest = zip(*parts, strict=True)
        rows = sorted((row for of_part in furthest for row in of_part), key=lambda row: -row.drift)
        drift = np.concatenate(drifts)
        return cls(drift, sum(bit_equal), sum(not_finite), sum(zero), max(largest), tuple(rows[:_FURTHEST]))

    def summary(self) -> Drift:
        """Returns the figures over all rows."""
        finite = len(self.drift) > 0
        return Drift(
            rows=len(self.drift) + self.not_finite,
            bit_equal=self.bit_equal,
            not_finite=self.not_finite,
            zero=self.zero,
            median=float(np.median(self.drift)) if finite else None,
            worst=float(self.drift.max()) if finite else None,
            largest_difference=self.largest_difference if finite else None,
            furthest=self.furthest,
        )


def measure_drift(rows: Pair[StoredRows], name: str, split: str, pairs: Pair[pa.Table]) -> DriftPart:
    """Compares one tensor of a split's rows, so many at a time that memory stays small.

    The two tables in `pairs` are the rows [N] of both stores' index tables, one beside the other.
    """
    shapes = [of_store.shape(name) for of_store in rows]
    if shapes[0] != shapes[1] or 0 in shapes[0]:
        raise ConfigError(
            f"{name!r} has {list(shapes[0])} numbers per row in {rows[0].folder.path}, and {list(shapes[1])} in "
            f"{rows[1].folder.path}: they can't be compared; choose another that both have by --name, or other stores"
        )
    step = max(1, _CHUNK_BYTES // (8 * math.prod(shapes[0])))
    drift = np.empty(len(pairs[0]))
    parts: list[DriftPart] = []
    filled = 0
    for start in range(0, len(drift), step):
        a, b = (table.slice(start, step) for table in pairs)
        part = _compare_chunk(rows[0].gather(name, a), rows[1].gather(name, b), split, b)
        # Into one array: small ones that stay, amid large ones that go, would keep the memory of all chunks.
        own = drift[filled : filled + len(part.drift)]
        own[:] = part.drift
        filled += len(own)
        parts.append(part._replace(drift=own))
    return DriftPart.merged(parts)


def _compare_chunk(a: Tensor, b: Tensor, split: str, identities: pa.Table) -> DriftPart:
    """Compares [N, ...] with [N, ...], in float64."""
    equal = _bits(a).eq(_bits(b)).all(dim=1) if a.dtype == b.dtype else torch.zeros(len(a), dtype=torch.bool)
    a, b = a.reshape(len(a), -1).double(), b.reshape(len(b), -1).double()
    finite = (a.isfinite() & b.isfinite()).all(dim=1)
    a, b = a[finite], b[finite]
    zero_a, zero_b = ((one == 0).all(dim=1) for one in (a, b))
    # Half the squared distance of the unit vectors is 1 - cosine, without the noise that this subtraction leaves.
    drift = (_unit(a) - _unit(b)).square().sum(dim=1) / 2
    drift[zero_a ^ zero_b] = 1.0
    order = drift.argsort(descending=True, stable=True)[:_FURTHEST]
    order = order[drift[order] > 0]
    places = finite.nonzero().flatten()[order]
    named = identities.select(["key", "path"]).take(pa.array(places.numpy())).to_pylist()
    return DriftPart(
        drift=drift.numpy(),
        bit_equal=int(equal.sum()),
        not_finite=int((~finite).sum()),
        zero=int((zero_a | zero_b).sum()),
        largest_difference=float((a - b).abs().max()) if len(a) else 0.0,
        furthest=tuple(
            DriftingRow(split, row["key"], row["path"], value)
            for row, value in zip(named, drift[order].tolist(), strict=True)
        ),
    )


def _bits(rows: Tensor) -> Tensor:
    return rows.reshape(len(rows), -1).contiguous().view(torch.uint8)


def _unit(rows: Tensor) -> Tensor:
    """Scales vectors to length 1; zero stays zero. In two steps, so that no square overflows, or vanishes."""
    for order in (math.inf, 2):
        length = torch.linalg.vector_norm(rows, order, dim=1, keepdim=True)
        rows = rows / torch.where(length > 0, length, 1.0)
    return rows
