"""Compares two stores of the same inputs, row by row: how far their embeddings have drifted apart (see `drift`)."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from embedx.errors import ConfigError, unknown
from embedx.names import EMBEDDINGS
from embedx.paths import StorePath
from embedx.store.format.differences import leaves_that_differ
from embedx.store.format.index import OK
from embedx.store.format.manifest import Manifest
from embedx.store.reading.attempts import start_anew
from embedx.store.reading.drift import Drift, DriftPart, Pair, measure_drift
from embedx.store.reading.reader import Store
from embedx.store.reading.stored_rows import StoredRows

_COLUMNS = ("key", "path", "status", "shard", "row", "sha256")


@dataclasses.dataclass(frozen=True)
class Difference:
    """An entry that is not the same in both stores' recipes or environments."""

    name: str
    """The dotted name, such as `recipe.batch_size`."""
    a: Any
    """The first store's value, as JSON; None where the store does not say."""
    b: Any
    """The second store's value."""


@dataclasses.dataclass(frozen=True)
class Overlap:
    """How many inputs of a split can be compared, and why the others can't."""

    compared: int
    only_in_a: int
    only_in_b: int
    rejected: int
    """The number of inputs that one of the stores, or both, rejected."""
    changed: int
    """The number of inputs of the same key whose bytes differ, by their sha256."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The result of `compare`."""

    a: StorePath
    b: StorePath
    unfinished: tuple[StorePath, ...]
    """The stores of the two whose run has not come to its end; only their committed units are compared."""
    differences: tuple[Difference, ...]
    overlap: dict[str, Overlap]
    """The overlap of each split."""
    drift: dict[str, Drift]
    """The drift of each tensor (`embeddings`, and extra layers that both stores have), over all splits."""
    drift_of_splits: dict[str, dict[str, Drift]]
    """The drift by tensor, and then by split."""

    def to_json(self) -> dict[str, Any]:
        """Returns the comparison as plain JSON values."""
        places = {"a": str(self.a), "b": str(self.b), "unfinished": list(map(str, self.unfinished))}
        return cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(self) | places, default=str)))


def compare(a: str | StorePath, b: str | StorePath, names: Sequence[str] | None = None) -> Comparison:
    """Compares the embeddings that two stores have of the same inputs, such as before and after an upgrade.

    A row is compared with the one of the same split and key, if both were embedded, and from the same bytes.

    Args:
        a: The path of one store.
        b: The path of the other one.
        names: The names of the tensors to compare; None takes all that both stores have.

    Raises:
        StoreReplacedError: If other stores take the place of these time and again.
        StoreError: If one is not a store, or damaged.
        ConfigError: If they have no row in common, or a tensor that is not in both, or not of one shape.
    """
    return start_anew(lambda: _compare((Store.open(a), Store.open(b)), names))


def _compare(stores: Pair[Store], names: Sequence[str] | None) -> Comparison:
    rows = _stored_rows(stores[0]), _stored_rows(stores[1])
    overlap: dict[str, Overlap] = {}
    parts: dict[str, dict[str, DriftPart]] = {}
    for split in dict.fromkeys([*stores[0].splits, *stores[1].splits]):
        pairs, overlap[split] = _pairs(_index(stores[0], split), _index(stores[1], split))
        if overlap[split].compared:
            for name in _common_names(rows, names):
                parts.setdefault(name, {})[split] = measure_drift(rows, name, split, pairs)
    if not parts:
        raise ConfigError(_nothing_in_common(stores, overlap))
    return Comparison(
        a=stores[0].path,
        b=stores[1].path,
        unfinished=tuple(store.path for store in stores if not store.complete),
        differences=tuple(_differences(*(store.manifest for store in stores))),
        overlap=overlap,
        drift={name: DriftPart.merged(of_splits.values()).summary() for name, of_splits in parts.items()},
        drift_of_splits={
            name: {split: part.summary() for split, part in of_splits.items()} for name, of_splits in parts.items()
        },
    )


def _stored_rows(store: Store) -> StoredRows:
    return StoredRows(store.folder, store.units.values(), check=True)


def _index(store: Store, split: str) -> pa.Table:
    """Reads the columns of a split's index tables that are needed; no rows if the store has no such split."""
    if split in store.splits and (table := store.index(split, _COLUMNS)).num_columns:
        return table
    return pa.table({name: pa.nulls(0, pa.int64() if name == "row" else pa.string()) for name in _COLUMNS})


def _pairs(a: pa.Table, b: pa.Table) -> tuple[tuple[pa.Table, pa.Table], Overlap]:
    """Finds the rows that can be compared, and puts them one beside the other, in the first store's order."""
    partners = pc.index_in(a["key"], value_set=b["key"].combine_chunks())
    only_in_b = pc.index_in(b["key"], value_set=a["key"].combine_chunks()).null_count
    a, b = a.filter(pc.is_valid(partners)), b.take(pc.drop_null(partners))
    embedded = pc.and_(pc.equal(a["status"], OK), pc.equal(b["status"], OK))
    common, a, b = len(a), a.filter(embedded), b.filter(embedded)
    # Inputs without a sha256, such as those of a writer's own batches, are taken for the same.
    same = pc.fill_null(pc.equal(a["sha256"], b["sha256"]), True)
    both, a, b = len(a), a.filter(same), b.filter(same)
    return (a, b), Overlap(
        compared=len(a),
        only_in_a=partners.null_count,
        only_in_b=only_in_b,
        rejected=common - both,
        changed=both - len(a),
    )


def _common_names(rows: Pair[StoredRows], names: Sequence[str] | None) -> list[str]:
    common = [name for name in rows[0].names if name in rows[1].names]
    missing = [name for name in names or () if name not in common]
    ConfigError.check([unknown("tensor", name, common, hint="(of those in both stores)") for name in missing])
    # `embeddings` first, whatever the order in the files
    return sorted(dict.fromkeys(names or common), key=EMBEDDINGS.__ne__)


def _differences(a: Manifest, b: Manifest) -> Iterator[Difference]:
    for name, old, new in (
        ("recipe", a.recipe.to_json(), b.recipe.to_json()),
        ("environment", _environments(a), _environments(b)),
    ):
        yield from (Difference(*leaf) for leaf in leaves_that_differ(name, old, new))


def _environments(manifest: Manifest) -> dict[str, Any]:
    """Returns the environment; an entry that changed while the store was written has all its values, in order."""
    first, *later = (one.to_json() for one in (manifest.environment, *manifest.later_environments))
    values = {name: list(dict.fromkeys(one.get(name) for one in (first, *later))) for name in first}
    return {name: found[0] if len(found) == 1 else ", then ".join(map(str, found)) for name, found in values.items()}


def _nothing_in_common(stores: Pair[Store], overlap: dict[str, Overlap]) -> str:
    totals = sum((Counter(vars(of_split)) for of_split in overlap.values()), Counter())
    if empty := [store for store in stores if not store.units]:
        return f"{empty[0].path} has no units, and so no row to compare; `embedx verify` tells what is missing"
    splits = " and ".join(f"{store.path} has the splits {', '.join(store.splits) or 'none'}" for store in stores)
    return (
        f"no row of {stores[0].path} can be compared with one of {stores[1].path}: {totals['only_in_a']} inputs are "
        f"only in the first, {totals['only_in_b']} only in the second, {totals['rejected']} rejected, "
        f"{totals['changed']} changed; a row is compared with that of the same split and key, and {splits}"
    )
