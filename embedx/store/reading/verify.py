"""Checks a store against itself: files, checksums, shapes, row identities, sums, and rows that are not finite."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from embedx.errors import StoreError
from embedx.names import INDEX, LOCK, PROBE, TARGETS
from embedx.paths import StorePath
from embedx.store.format import layout
from embedx.store.format.contents import SplitTotals
from embedx.store.format.index import OK, STATUSES, UnitEntry, read_entry, read_index
from embedx.store.format.many_at_once import SHARDS_AT_ONCE, TABLES_AT_ONCE, many_at_once
from embedx.store.format.shards import (
    FORMAT,
    UNKNOWN_TARGET,
    ShardEntry,
    ShardHeader,
    form,
    has_inputs,
    open_shard,
    read_header,
)
from embedx.store.format.store_folder import StoreFile
from embedx.store.reading.attempts import start_anew
from embedx.store.reading.reader import Store
from embedx.system.machine import cores

_MOST_AHEAD = 64
"""The number of shards above which no further unit is looked at ahead, so that copies from a bucket stay few."""
NOT_COMPLETE = f"{layout.MANIFEST}: the store is not complete; run the same `embedx extract` again"
"""The fault of a store whose run was interrupted; nothing else has to be wrong with it."""
NOT_FINITE = "have NaN or infinity"
"""The words of each fault that is none of the files: the rows were computed so, and not allowed to be."""


def verify(path: str | StorePath) -> Iterator[str]:
    """Goes through a store and yields its faults, one sentence each; nothing if it is whole.

    Raises:
        StoreReplacedError: If other stores take its place time and again, or one after its first fault was yielded.
        StoreError: If `path` is not a store, or its manifest was changed, so that nothing can be checked against it.
    """

    def begin() -> tuple[list[str], Iterator[str]]:
        faults = _faults_of_one(Store.open(path))
        return list(itertools.islice(faults, 1)), faults

    first, others = start_anew(begin)
    yield from first
    yield from others


def _faults_of_one(store: Store) -> Iterator[str]:
    """Yields the faults, as long as it is still this store that has them."""
    for fault in _faults(store):
        if not store.folder.is_current():
            raise store.folder.fault(fault)
        yield fault


def _faults(store: Store) -> Iterator[str]:
    if not store.complete:
        yield NOT_COMPLETE
    if store.folder.read(layout.MANIFEST) != store.manifest.encode():
        yield f"{layout.MANIFEST}: its bytes are not those that embedx wrote; the file was changed"
    known: set[str] = set()
    units: dict[str, list[UnitEntry]] = {}
    keys: dict[str, list[pa.Array]] = {}
    forms: dict[str, tuple[str, str]] = {}
    for table in _tables_with_digests(store):
        known.add(table.relative)
        yield from table.faults
        if table.unit is None or table.rows is None:
            continue
        known.update(entry.path for entry in table.unit.shards)
        units.setdefault(table.unit.split, []).append(table.unit)
        keys.setdefault(table.unit.split, []).extend(table.rows["key"].chunks)
        yield from _check_unit(store, table.relative, table.unit, table.rows, table.digests, forms)
    yield from _check_sums(store, units)
    yield from _check_keys(keys)
    for relative in sorted(store.manifest.index.keys() - known):
        yield f"{relative}: missing"
    yield from _strangers(store, known)


class _Table(NamedTuple):
    """An index table, and the sha256 of its shards."""

    relative: str
    faults: list[str]
    """The faults of the table itself."""
    unit: UnitEntry | None = None
    """The unit that it commits; None if the table can't be read, as with `rows`."""
    rows: pa.Table | None = None
    digests: Sequence[Future[str]] = ()
    """The sha256 of each of the unit's shards, which threads compute."""


def _tables_with_digests(store: Store) -> Iterator[_Table]:
    """Yields the index tables; each core computes the sha256 of a shard meanwhile, a few units ahead."""
    threads = SHARDS_AT_ONCE if store.folder.is_remote else cores()
    pool = ThreadPoolExecutor(threads)
    ahead: deque[_Table] = deque()
    files = layout.index_tables(store.folder).values()
    try:
        for table in many_at_once(store.folder, lambda file: _read_table(store, file), files, TABLES_AT_ONCE):
            shards = [store.folder / entry.path for entry in (table.unit.shards if table.unit else ())]
            store.folder.learn_sizes(shard.relative for shard in shards)
            ahead.append(table._replace(digests=[pool.submit(shard.sha256) for shard in shards]))
            while len(ahead) > threads or (len(ahead) > 1 and sum(len(each.digests) for each in ahead) > _MOST_AHEAD):
                yield ahead.popleft()
        yield from ahead
    finally:
        pool.shutdown(cancel_futures=True)


def _read_table(store: Store, file: StoreFile) -> _Table:
    faults = []
    try:
        stated = store.manifest.index.get(file.relative)
        if store.complete and stated != file.sha256():
            said = "the sha256 is not the one" if stated else "it is not"
            faults.append(f"{file.relative}: {said} in {layout.MANIFEST}")
        unit, rows = read_entry(file), read_index(file)
    except (StoreError, OSError) as error:
        return _Table(file.relative, [*faults, str(error)])
    return _Table(file.relative, faults, unit, rows)


def _check_sums(store: Store, units: dict[str, list[UnitEntry]]) -> Iterator[str]:
    """Compares the sums over each split with the manifest's totals and plan."""
    manifest = store.manifest
    for split in dict.fromkeys([*manifest.plan.splits, *manifest.totals, *units]):
        found = SplitTotals.of(units.get(split, ()))
        if found.inputs != found.rows + found.rejected + found.unavailable:
            yield (
                f"split {split!r}: {found.inputs} inputs, but {found.rows} rows + {found.rejected} rejected + "
                f"{found.unavailable} unavailable"
            )
        if not store.complete:
            continue
        stated = manifest.totals[split].to_json() if split in manifest.totals else {}
        counted = {**dict.fromkeys(stated, 0), **found.to_json()}
        for name, number in counted.items():
            if stated.get(name) != number:
                yield f"split {split!r}: {layout.MANIFEST} says {stated.get(name)} {name}, found {number}"
        planned = manifest.plan.splits.get(split)
        if planned is not None and planned.inputs != found.inputs:
            yield f"split {split!r}: the plan in {layout.MANIFEST} has {planned.inputs} inputs, found {found.inputs}"


def _check_keys(keys: dict[str, list[pa.Array]]) -> Iterator[str]:
    """Names the keys that a split has more than once."""
    for split, chunks in keys.items():
        counts = pc.value_counts(pa.chunked_array(chunks, pa.string()))
        for key in counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist():
            yield f"split {split!r}: the key {key!r} occurs more than once"


def _strangers(store: Store, known: set[str]) -> Iterator[str]:
    """Names the files that look as if they belonged to the store, and that nothing in it names."""
    for folder, names in store.folder.walk():
        for name in names:
            relative = os.path.normpath(f"{folder}/{name}")
            looks_ours = relative.startswith(f"{INDEX}/") or name.lower().endswith((".safetensors", ".parquet"))
            if looks_ours and not layout.is_temporary(name) and relative not in known:
                shard = relative.endswith(".safetensors")
                yield f"{relative}: {'no index table names it' if shard else 'it is none of the index tables'}"
            elif store.complete and relative not in (LOCK, PROBE) and layout.is_temporary(name):
                yield f"{relative}: left behind by a run that was interrupted"


def _check_unit(
    store: Store,
    relative: str,
    unit: UnitEntry,
    table: pa.Table,
    digests: Sequence[Future[str]],
    forms: dict[str, tuple[str, str]],
) -> Iterator[str]:
    """Checks an index table and its shards.

    `forms` has the form of each tensor and the first shard that has it, by the tensor's name; new ones are added.
    """
    ok = table.filter(pc.equal(table["status"], OK))
    counts = [pc.sum(pc.equal(table["status"], status)).as_py() for status in STATUSES]
    if [len(table), *counts] != [unit.inputs, unit.rows, unit.rejected, unit.unavailable]:
        yield f"{relative}: {len(table)} inputs and {len(ok)} rows, but its metadata say otherwise"
    if pc.unique(table["split"]).to_pylist() != [unit.split]:
        yield f"{relative}: not all of its rows are of split {unit.split!r}"
    if unit.recipe != store.manifest.fingerprint:
        yield f"{relative}: made by another recipe than {layout.MANIFEST} says"
    if sum(entry.rows for entry in unit.shards) != unit.rows:
        yield f"{relative}: its shards have {sum(entry.rows for entry in unit.shards)} rows, not {unit.rows}"
    grouped = store.manifest.plan.grouped
    unnamed = pc.invert(pc.is_in(ok["shard"], pa.array([entry.path for entry in unit.shards], pa.string())))
    for key in ok.filter(unnamed)["key"].to_pylist()[:1]:
        yield f"{relative}: the row of {key!r} is in no shard"
    for entry, digest in zip(unit.shards, digests, strict=True):
        try:
            if entry.path.count("/") != (2 if grouped else 1):
                yield f"{entry.path}: not where a store {'with' if grouped else 'without'} groups has its shards"
            yield from _check_shard(store, unit, entry, digest, ok.filter(pc.equal(ok["shard"], entry.path)), forms)
        except (StoreError, OSError) as error:
            yield str(error)


def _check_shard(
    store: Store,
    unit: UnitEntry,
    entry: ShardEntry,
    digest: Future[str],
    rows: pa.Table,
    forms: dict[str, tuple[str, str]],
) -> Iterator[str]:
    """Checks a shard's file, header, tensors and identities; `rows` are those of the index table that name it."""
    file = store.folder / entry.path
    try:
        size = file.size()
    except StoreError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        yield f"{entry.path}: missing"
        return
    if size != entry.bytes:
        yield f"{entry.path}: {size} bytes, not {entry.bytes}"
    if digest.result() != entry.sha256:
        yield f"{entry.path}: the sha256 is not the one in its index table; the file was changed"
        return
    with open_shard(file) as shard:
        header = read_header(shard)
        described = ShardHeader(FORMAT, unit.split, entry.group, unit.unit, store.manifest.fingerprint)
        if header._replace(inputs_sha256=None) != described:
            yield f"{entry.path}: its header says {header}"
        for name in shard.keys():  # noqa: SIM118  (not a mapping)
            tensor = shard.get_tensor(name)
            yield from _check_tensor(entry, name, tensor, rows, forms)
            if tensor.is_floating_point() and not store.manifest.settings.allow_nonfinite:
                yield from _check_finite(entry, name, tensor, rows)
        if store.manifest.plan.grouped and set(rows["group"].to_pylist()) - {entry.group}:
            yield f"{entry.path}: not all of its rows are of group {entry.group!r}"
        yield from _check_inputs(entry, header, rows.sort_by("row"), shard)


def _check_tensor(
    entry: ShardEntry, name: str, tensor: Tensor, rows: pa.Table, forms: dict[str, tuple[str, str]]
) -> Iterator[str]:
    """Checks that a tensor has the form that it has in other shards, and the number of rows."""
    usual, first = forms.setdefault(name, (form(tensor), entry.path))
    if form(tensor) != usual:
        yield f"{entry.path}: {name!r} is {form(tensor)}, but {usual} in {first}"
    if len(tensor) != entry.rows or len(rows) != entry.rows:
        yield f"{entry.path}: {name!r} has {len(tensor)} rows, the index table {len(rows)}"


def _check_finite(entry: ShardEntry, name: str, tensor: Tensor, rows: pa.Table) -> Iterator[str]:
    """Counts the rows of a tensor that are not finite, and names the first."""
    # Such a row's sum is not finite either, which takes one pass; a sum of very large numbers may not be so either.
    values = tensor.reshape(len(tensor), -1)
    sums = (values.float() if values.dtype.itemsize == 1 else values).sum(dim=1)  # torch sums no float8
    suspects = (~sums.isfinite()).nonzero().flatten()
    bad = suspects[~values[suspects].isfinite().all(dim=1)].tolist()
    if bad:
        key = rows.filter(pc.equal(rows["row"], bad[0]))["key"].to_pylist()
        yield f"{entry.path}: {len(bad)} rows of {name!r} {NOT_FINITE}, first row {bad[0]} {key}"


def _check_inputs(entry: ShardEntry, header: ShardHeader, rows: pa.Table, shard: Any) -> Iterator[str]:
    """Compares all that a shard and the rows [N] of its index table, sorted by `row`, both say of the inputs."""
    numbered = torch.equal(_numbers(rows["row"].fill_null(-1)), torch.arange(len(rows)))
    if not (numbered and torch.equal(shard.get_tensor(INDEX), _numbers(rows["index"]))):
        yield f"{entry.path}: its rows are not those of its index table"
    elif not has_inputs(header, rows):
        yield f"{entry.path}: its inputs are not those of its index table, by their sha256"
    unknown = torch.full((len(rows),), UNKNOWN_TARGET)
    targets = shard.get_tensor(TARGETS) if TARGETS in shard.keys() else unknown  # noqa: SIM118
    if not torch.equal(targets, _numbers(rows["target"].fill_null(UNKNOWN_TARGET))):
        yield f"{entry.path}: its targets are not those of its index table"


def _numbers(column: pa.ChunkedArray) -> Tensor:
    """Returns a column of whole numbers without nulls as an int64 tensor [N]."""
    return torch.from_numpy(column.to_numpy().astype("int64"))
