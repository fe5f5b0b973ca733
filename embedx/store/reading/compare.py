"""Two stores of the same inputs, row by row: how far their embeddings have drifted apart.

The drift of two vectors is 1 - their cosine similarity: 0 for one direction, 1 for a right angle, 2 for opposite ones.
Shapes: N rows, D numbers per row; of more dimensions than one, a row counts as one long vector.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from embedx.errors import ConfigError, unknown
from embedx.names import EMBEDDINGS
from embedx.store.format.differences import leaves_that_differ
from embedx.store.format.index import OK
from embedx.store.format.manifest import Manifest
from embedx.store.reading.reader import Store
from embedx.store.reading.stored_rows import StoredRows

T = TypeVar("T")
_Pair: TypeAlias = tuple[T, T]
"""Of the first store, and of the second."""

_COLUMNS = ("key", "path", "status", "shard", "row", "sha256")
_FURTHEST = 10
"""Rows that are named of every split."""
_CHUNK_BYTES = 4 << 20
"""Of one store's numbers in float64, compared at a time."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """One thing that is not the same in both stores' recipes or environments."""

    name: str
    """Dotted, such as `recipe.batch_size`."""
    a: Any
    """A plain JSON value; None where the store does not say."""
    b: Any


@dataclasses.dataclass(frozen=True)
class DriftingRow:
    """One row, and how far it has moved."""

    split: str
    key: str
    path: str | None
    """Where the second store says that the input is."""
    drift: float


@dataclasses.dataclass(frozen=True)
class Drift:
    """How far the rows of one tensor lie apart; rows that are not finite in one of the stores have no part in it."""

    rows: int
    """Rows compared."""
    bit_equal: int
    """Those that are of one type, and the same bit by bit."""
    not_finite: int
    """Those with NaN or infinity in one of the stores."""
    zero: int
    """Those that are all zero in one of the stores; the drift from there to any other vector counts as 1."""
    median: float | None
    """None if no row is finite."""
    worst: float | None
    largest_difference: float | None
    """Between two numbers, in absolute terms."""
    furthest: tuple[DriftingRow, ...]
    """The rows with the largest drift, of those that have any, in falling order."""


@dataclasses.dataclass(frozen=True)
class Overlap:
    """How many inputs of a split can be compared, and why the others can't."""

    compared: int
    only_in_a: int
    only_in_b: int
    rejected: int
    """In one of the stores, or in both."""
    changed: int
    """Inputs of the same key whose bytes differ, by their sha256."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `compare` has found."""

    a: Path
    b: Path
    unfinished: tuple[Path, ...]
    """Those of the two whose run has not come to its end; what is committed of them is compared."""
    differences: tuple[Difference, ...]
    overlap: dict[str, Overlap]
    """By split."""
    drift: dict[str, Drift]
    """By tensor (`embeddings`, and extra layers that both stores have), over all splits."""
    drift_of_splits: dict[str, dict[str, Drift]]
    """By tensor, and then by split."""

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain JSON values."""
        return cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(self), default=str)))


def compare(a: str | Path, b: str | Path, names: Sequence[str] | None = None) -> Comparison:
    """Compares the embeddings that two stores have of the same inputs, such as before and after an upgrade.

    A row is compared with the one of the same split and key, if both were embedded, and from the same bytes.

    Args:
        a: One store.
        b: The other one.
        names: The tensors to compare; None: all that both stores have.

    Raises:
        StoreError: If one is not a store, or damaged.
        ConfigError: If they have no row in common, or a tensor that is not in both, or not of one shape.
    """
    stores = Store.open(a), Store.open(b)
    rows = _stored_rows(stores[0]), _stored_rows(stores[1])
    overlap: dict[str, Overlap] = {}
    parts: dict[str, dict[str, _Part]] = {}
    for split in dict.fromkeys([*stores[0].splits, *stores[1].splits]):
        pairs, overlap[split] = _pairs(_index(stores[0], split), _index(stores[1], split))
        if overlap[split].compared:
            for name in _common_names(rows, names):
                parts.setdefault(name, {})[split] = _compare_rows(rows, name, split, pairs)
    if not parts:
        raise ConfigError(_nothing_in_common(stores, overlap))
    return Comparison(
        a=stores[0].path,
        b=stores[1].path,
        unfinished=tuple(store.path for store in stores if not store.complete),
        differences=tuple(_differences(*(store.manifest for store in stores))),
        overlap=overlap,
        drift={name: _Part.merged(of_splits.values()).summary() for name, of_splits in parts.items()},
        drift_of_splits={
            name: {split: part.summary() for split, part in of_splits.items()} for name, of_splits in parts.items()
        },
    )


class _Part(NamedTuple):
    """The comparison of some rows of one tensor."""

    drift: np.ndarray[Any, np.dtype[np.float64]]
    """Of each row that is finite in both stores."""
    bit_equal: int
    not_finite: int
    zero: int
    largest_difference: float
    furthest: tuple[DriftingRow, ...]

    @classmethod
    def merged(cls, parts: Iterable[_Part]) -> _Part:
        drifts, bit_equal, not_finite, zero, largest, furthest = zip(*parts, strict=True)
        rows = sorted((row for of_part in furthest for row in of_part), key=lambda row: -row.drift)
        drift = np.concatenate(drifts)
        return cls(drift, sum(bit_equal), sum(not_finite), sum(zero), max(largest), tuple(rows[:_FURTHEST]))

    def summary(self) -> Drift:
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


def _stored_rows(store: Store) -> StoredRows:
    return StoredRows(store.path, store.units.values())


def _index(store: Store, split: str) -> pa.Table:
    """What is needed of a split's index tables; empty if the store has no such split."""
    if split in store.splits and (table := store.index(split, _COLUMNS)).num_columns:
        return table
    return pa.table({name: pa.nulls(0, pa.int64() if name == "row" else pa.string()) for name in _COLUMNS})


def _pairs(a: pa.Table, b: pa.Table) -> tuple[tuple[pa.Table, pa.Table], Overlap]:
    """The rows of both that can be compared, one beside the other, in the first store's order."""
    partners = pc.index_in(a["key"], value_set=b["key"].combine_chunks())
    only_in_b = pc.index_in(b["key"], value_set=a["key"].combine_chunks()).null_count
    a, b = a.filter(pc.is_valid(partners)), b.take(pc.drop_null(partners))
    embedded = pc.and_(pc.equal(a["status"], OK), pc.equal(b["status"], OK))
    common, a, b = len(a), a.filter(embedded), b.filter(embedded)
    # Inputs whose sha256 nobody has stated, as of a writer's own batches, are taken for the same.
    same = pc.fill_null(pc.equal(a["sha256"], b["sha256"]), True)
    both, a, b = len(a), a.filter(same), b.filter(same)
    return (a, b), Overlap(
        compared=len(a),
        only_in_a=partners.null_count,
        only_in_b=only_in_b,
        rejected=common - both,
        changed=both - len(a),
    )


def _compare_rows(rows: _Pair[StoredRows], name: str, split: str, pairs: _Pair[pa.Table]) -> _Part:
    """Compares one tensor of a split's rows, so many at a time that memory stays small."""
    shapes = [of_store.shape(name) for of_store in rows]
    if shapes[0] != shapes[1] or 0 in shapes[0]:
        raise ConfigError(
            f"{name!r} has {list(shapes[0])} numbers per row in {rows[0].root}, and {list(shapes[1])} in "
            f"{rows[1].root}: they can't be compared; choose another tensor that both have by --name, or other "
            "stores"
        )
    step = max(1, _CHUNK_BYTES // (8 * math.prod(shapes[0])))
    drift = np.empty(len(pairs[0]))
    parts: list[_Part] = []
    filled = 0
    for start in range(0, len(drift), step):
        a, b = (table.slice(start, step) for table in pairs)
        part = _compare_chunk(rows[0].gather(name, a), rows[1].gather(name, b), split, b)
        # Into one array: small ones that stay, amid large ones that go, would keep the memory of all chunks.
        own = drift[filled : filled + len(part.drift)]
        own[:] = part.drift
        filled += len(own)
        parts.append(part._replace(drift=own))
    return _Part.merged(parts)


def _compare_chunk(a: Tensor, b: Tensor, split: str, identities: pa.Table) -> _Part:
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
    return _Part(
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
    """Vectors scaled to length 1; zero stays zero. In two steps, so that no square overflows, or vanishes."""
    for order in (math.inf, 2):
        length = torch.linalg.vector_norm(rows, order, dim=1, keepdim=True)
        rows = rows / torch.where(length > 0, length, 1.0)
    return rows


def _common_names(rows: _Pair[StoredRows], names: Sequence[str] | None) -> list[str]:
    common = [name for name in rows[0].names if name in rows[1].names]
    ConfigError.check(
        [
            unknown("tensor", name, common, hint="(of those in both stores)")
            for name in names or ()
            if name not in common
        ]
    )
    # `embeddings` first, whatever the order in the files
    return sorted(dict.fromkeys(names or common), key=EMBEDDINGS.__ne__)


def _differences(a: Manifest, b: Manifest) -> Iterator[Difference]:
    for name, old, new in (
        ("recipe", a.recipe.to_json(), b.recipe.to_json()),
        ("environment", _environments(a), _environments(b)),
    ):
        yield from (Difference(*leaf) for leaf in leaves_that_differ(name, old, new))


def _environments(manifest: Manifest) -> dict[str, Any]:
    """The environment; of what has changed while the store was written, all values in order."""
    first, *later = (one.to_json() for one in (manifest.environment, *manifest.later_environments))
    values = {name: list(dict.fromkeys(one.get(name) for one in (first, *later))) for name in first}
    return {name: found[0] if len(found) == 1 else ", then ".join(map(str, found)) for name, found in values.items()}


def _nothing_in_common(stores: _Pair[Store], overlap: dict[str, Overlap]) -> str:
    totals = {
        field.name: sum(getattr(of_split, field.name) for of_split in overlap.values())
        for field in dataclasses.fields(Overlap)
    }
    if empty := [store for store in stores if not store.units]:
        return (
            f"{empty[0].path} has no units, and so no row that could be compared; `embedx verify` tells what it lacks"
        )
    splits = " and ".join(f"{store.path} has the splits {', '.join(store.splits) or 'none'}" for store in stores)
    return (
        f"no row of {stores[0].path} can be compared with one of {stores[1].path}: {totals['only_in_a']} inputs are "
        f"only in the first, {totals['only_in_b']} only in the second, {totals['rejected']} rejected, "
        f"{totals['changed']} changed; a row is compared with that of the same split and key, and {splits}"
    )
