"""Checking a store against itself: files, checksums, shapes, row identities, sums, and rows that are not finite."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import torch

from embedx.errors import StoreError
from embedx.store import layout
from embedx.store.index import OK, UnitEntry, read_entry, read_index
from embedx.store.reader import Store
from embedx.store.shards import INDEX, ShardEntry, form, open_shard, read_header

NOT_COMPLETE = f"{layout.MANIFEST}: the store is not complete; run the same `embedx extract` again"
"""What is found of a store whose run was interrupted, in which nothing has to be damaged."""


def verify(path: str | Path) -> Iterator[str]:
    """Goes through a store and yields what is wrong with it, one sentence per fault; nothing if it is whole.

    Raises:
        StoreError: If `path` is not a store.
    """
    store = Store.open(path)
    if not store.complete:
        yield NOT_COMPLETE
    known: set[Path] = set()
    totals: Counter[tuple[str, str]] = Counter()
    keys: dict[str, list[pa.Array]] = {}
    forms: dict[str, tuple[str, str]] = {}
    for index_path in layout.index_files(store.path).values():
        relative = f"{layout.INDEX}/{index_path.name}"
        stated = store.manifest.index.get(relative)
        if store.complete and stated != hashlib.sha256(index_path.read_bytes()).hexdigest():
            yield f"{relative}: {'the sha256 is not the one' if stated else 'it is not'} in {layout.MANIFEST}"
        try:
            unit = read_entry(index_path)
            table = read_index(index_path)
        except StoreError as error:
            yield str(error)
            continue
        known.update(store.path / entry.path for entry in unit.shards)
        for name in ("inputs", "rows", "rejected"):
            totals[unit.split, name] += getattr(unit, name)
        keys.setdefault(unit.split, []).extend(table["key"].chunks)
        yield from _check_unit(store, relative, unit, table, forms)
    yield from _check_sums(store, totals)
    for split, chunks in keys.items():
        counts = pc.value_counts(pa.chunked_array(chunks, pa.string()))
        for key in counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist():
            yield f"split {split!r}: the key {key!r} stands there more than once"
    for relative in store.manifest.index:
        if not (store.path / relative).is_file():
            yield f"{relative}: missing"
    for _, _, shard_path in layout.shard_files(store.path):
        if shard_path not in known:
            yield f"{shard_path.relative_to(store.path)}: no index table names it"


def _check_sums(store: Store, totals: Counter[tuple[str, str]]) -> Iterator[str]:
    for split in dict.fromkeys([*store.manifest.plan["splits"], *(split for split, _ in totals)]):
        inputs, rows, rejected = (totals[split, name] for name in ("inputs", "rows", "rejected"))
        if inputs != rows + rejected:
            yield f"split {split!r}: {inputs} inputs, but {rows} rows + {rejected} rejected"
        stated = store.manifest.totals.get(split, {})
        for name in ("inputs", "rows", "rejected") if store.complete else ():
            if stated.get(name) != totals[split, name]:
                yield f"split {split!r}: {layout.MANIFEST} says {stated.get(name)} {name}, found {totals[split, name]}"


def _check_unit(
    store: Store, relative: str, unit: UnitEntry, table: pa.Table, forms: dict[str, tuple[str, str]]
) -> Iterator[str]:
    ok = table.filter(pc.equal(table["status"], OK))
    if (len(table), len(ok), len(table) - len(ok)) != (unit.inputs, unit.rows, unit.rejected):
        yield f"{relative}: {len(table)} inputs and {len(ok)} rows, but its metadata say otherwise"
    if unit.recipe != store.manifest.fingerprint:
        yield f"{relative}: made by another recipe than {layout.MANIFEST} says"
    if sum(entry.rows for entry in unit.shards) != unit.rows:
        yield f"{relative}: its shards have {sum(entry.rows for entry in unit.shards)} rows, not {unit.rows}"
    for entry in unit.shards:
        try:
            yield from _check_shard(store, unit, entry, ok.filter(pc.equal(ok["shard"], entry.path)), forms)
        except StoreError as error:
            yield str(error)


def _check_shard(
    store: Store, unit: UnitEntry, entry: ShardEntry, rows: pa.Table, forms: dict[str, tuple[str, str]]
) -> Iterator[str]:
    path = store.path / entry.path
    if not path.is_file():
        yield f"{entry.path}: missing"
        return
    if (size := path.stat().st_size) != entry.bytes:
        yield f"{entry.path}: {size} bytes, not {entry.bytes}"
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
            yield f"{entry.path}: the sha256 is not the one in its index table; the file was changed"
            return
    with open_shard(path) as shard:
        header = read_header(shard)
        if (header.split, header.group, header.unit, header.recipe) != (
            unit.split, entry.group, unit.unit, store.manifest.fingerprint,
        ):  # fmt: skip
            yield f"{entry.path}: its header says {header}"
        for name in shard.keys():  # noqa: SIM118  (not a mapping)
            tensor = shard.get_tensor(name)
            usual, first = forms.setdefault(name, (form(tensor), entry.path))
            if form(tensor) != usual:
                yield f"{entry.path}: {name!r} is {form(tensor)}, but {usual} in {first}"
            if len(tensor) != entry.rows or len(rows) != entry.rows:
                yield f"{entry.path}: {name!r} has {len(tensor)} rows, the index table {len(rows)}"
            elif tensor.is_floating_point():
                bad = (~tensor.isfinite()).reshape(len(tensor), -1).any(dim=1).nonzero().flatten().tolist()
                if bad:
                    key = rows.filter(pc.equal(rows["row"], bad[0]))["key"].to_pylist()
                    yield f"{entry.path}: {len(bad)} rows of {name!r} have NaN or infinity, first row {bad[0]} {key}"
        by_row = rows.sort_by("row")
        if by_row["row"].to_pylist() != list(range(len(rows))) or not torch.equal(
            shard.get_tensor(INDEX), torch.tensor(by_row["index"].to_pylist(), dtype=torch.int64)
        ):
            yield f"{entry.path}: its rows are not those of its index table"
