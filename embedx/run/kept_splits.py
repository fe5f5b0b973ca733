"""Keeps the splits of a store that a run does not name: they join its plan as they are stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from embedx.data.plan import PLAN_COLUMNS, Plan, SplitPlan
from embedx.data.sources.base import TARGET, as_path
from embedx.errors import ConfigError
from embedx.paths import StorePath
from embedx.store.format.contents import SplitTerms
from embedx.store.format.index import INDEX_SCHEMA, read_index
from embedx.store.format.layout import Unit, folder_name, index_files, index_path, journal_files, store_root
from embedx.store.format.manifest import Manifest
from embedx.store.reading.index_rows import concat_rows
from embedx.store.writing.checks import whole_units


def with_kept_splits(plan: Plan, out: StorePath, store: Manifest, dropped: Sequence[str]) -> Plan:
    """Adds the store's other splits to a plan, but for those to be dropped, and numbers the classes of all together.

    Args:
        plan: The inputs that the run names.
        out: The folder of the store.
        store: The manifest of the store.
        dropped: The names of the splits to be dropped.

    Raises:
        ConfigError: If a split to be dropped is not there, or named as well, if none would be left, or if a split that
            stays is not whole, as its inputs aren't named.
        StoreError: If an index table is damaged.
    """
    ConfigError.check([*_faults(plan, out, store, dropped)])
    damages: list[str] = []
    root = store_root(out)
    whole = whole_units(root, store.fingerprint, read_tables=True, tell=damages.append)
    units = {Unit(entry.split, entry.unit): entry.inputs for entry in whole.values()}
    begun = {split for split, _ in [*journal_files(root), *index_files(root)]}
    splits: dict[str, SplitPlan] = {}
    names: dict[str, Sequence[str]] = {}
    for name, terms in store.plan.splits.items():
        tables = [index_path(unit) for unit in units if unit.split == name]
        if name in plan.splits:
            splits[name], names[name] = plan.splits[name], plan.classes
        elif name not in dropped and (store.complete or folder_name(name) in begun):
            found = sum(inputs for unit, inputs in units.items() if unit.split == name)
            if found != terms.inputs:
                raise _lacking(out, name, terms.inputs - found, terms.inputs, damages)
            splits[name] = _stored_split(name, terms, concat_rows([read_index(root / table) for table in tables]))
            names[name] = store.plan.classes or ()
    new = plan.splits.keys() - splits.keys()
    splits |= {name: split for name, split in plan.splits.items() if name in new}
    names |= dict.fromkeys(new, plan.classes)
    if not splits:
        raise ConfigError(f"--drop-split leaves {out} no split; delete the folder, if no row of it is to stay")
    return _numbered_together(plan, splits, names)


def check_complete(plan: Plan, missing: Mapping[str, int], out: StorePath) -> None:
    """Raises a ConfigError if inputs of a split that stays are to be computed, as its files were found damaged."""
    for name, split in plan.splits.items():
        if split.kept is not None and missing.get(name):
            raise _lacking(out, name, missing[name], len(split))


def _lacking(out: StorePath, name: str, missing: int, inputs: int, damages: Sequence[str] = ()) -> ConfigError:
    message = (
        f"{out} lacks {missing:,} of the {inputs:,} inputs of its split {name!r}, which --data does not name; name it "
        f"again, as in --data {name}=SOURCE, or give --update --drop-split {name}"
    )
    return ConfigError([message, *damages])


def _faults(plan: Plan, out: StorePath, store: Manifest, dropped: Sequence[str]) -> list[str]:
    faults = []
    for name in dropped:
        if name not in store.plan.splits:
            faults.append(f"--drop-split {name}: {out} has the splits {', '.join(store.plan.splits) or 'none'}")
        elif name in plan.splits:
            faults.append(f"--drop-split {name}: --data names that split too; leave out one of the two")
    return faults


def _stored_split(name: str, terms: SplitTerms, stored: pa.Table) -> SplitPlan:
    """Returns the plan of a split from its index rows, in their order."""
    columns = {own: stored[other] for own, other in (("size", "bytes"), *((same, same) for same in _SAME))}
    columns["path"] = pa.array([path and as_path(path) for path in stored["path"].to_pylist()], pa.binary())
    metadata = [column for column in stored.column_names if column not in INDEX_SCHEMA.names]
    table = pa.table({column: columns[column] for column in PLAN_COLUMNS} | {one: stored[one] for one in metadata})
    return SplitPlan(name, table.combine_chunks(), kept=terms.to_json())


_SAME = ("key", "offset", "mtime_ns", "group", TARGET)
"""The columns of a plan that have the same name in an index table."""


def _numbered_together(plan: Plan, splits: dict[str, SplitPlan], names: dict[str, Sequence[str]]) -> Plan:
    """Gives each class one number in all splits (see `build_plan`); `names` are those of each split's numbers."""
    used = {name: pc.unique(split.table[TARGET]).drop_null().to_pylist() for name, split in splits.items()}
    numbered = [name for name, targets in used.items() if targets and not names[name]]
    classes = sorted({names[name][target] for name, targets in used.items() if names[name] for target in targets})
    if classes and numbered:
        raise ConfigError(f"targets are numbers in split {numbered[0]!r}, and names such as {classes[0]!r} in another")
    if classes:
        for name, split in splits.items():
            own = pa.array([classes.index(one) if one in classes else None for one in names[name]], pa.int64())
            splits[name] = split.with_targets(own.take(split.table[TARGET].combine_chunks()))
    return dataclasses.replace(plan, splits=splits, classes=classes)
