"""The facts of a report that need no vectors: what the store is, its splits and classes, and inputs without a row."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedx.store.format.hardware import distinct
from embedx.store.format.index import OK
from embedx.store.reading.reader import Store
from embedx.values import count_text, size_text
from embedx.vectors.reporting.labels import NONE, Labels
from embedx.vectors.reporting.report_data import ClassFacts, Fact, Reject, SplitFacts
from embedx.vectors.vector_rows import VectorRows

_EXAMPLES = 10
_MOST_REASONS = 50
_OF_RECIPE = ("layers", "pooling", "normalize", "precision", "runtime", "device", "batch_size", "dtype")


def facts_of(rows: VectorRows) -> tuple[Fact, ...]:
    """Returns what a store is: its recipe, the environments it was made in, and the rate."""
    manifest = rows.store.manifest
    recipe = manifest.recipe.to_json()
    units = rows.store.units.values()
    facts: dict[str, Any] = {
        "backbone": recipe.get("backbone"),
        "weights": _words(recipe.get("weights")),
        "preprocessing": _words(recipe.get("preprocessing")),
        "recipe": _words({name: recipe[name] for name in _OF_RECIPE if recipe.get(name) not in (None, [], {})}),
        "tensor": f"{rows.name}, {rows.dim} numbers a row",
        "shards": size_text(sum(shard.bytes for unit in units for shard in unit.shards)),
        "versions": _words(manifest.environment.packages),
        "python": manifest.environment.stated.get("python"),
    }
    for environment in distinct(units):
        words = count_text(environment.pop("units"), "unit")
        facts[f"hardware of {words}"] = _words(environment)
    if rate := manifest.timings.get("images_per_second"):
        facts["rate"] = f"{rate:,.0f} inputs/s, {manifest.timings.get('seconds', 0):,.0f} s in the last run"
    facts["fingerprint"] = manifest.fingerprint
    facts["reported by"] = f"embedx {version('embedx')}"
    return tuple(Fact(name, str(value)) for name, value in facts.items() if value not in (None, ""))


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(each)}" for name, each in value.items() if each is not None)
    if isinstance(value, list):
        return " ".join(map(_words, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else "" if value is None else str(value)


def splits_of(store: Store, splits: Sequence[str]) -> tuple[SplitFacts, ...]:
    """Returns the counts of these splits, over all of their inputs."""
    found = []
    for split in splits:
        units = [unit for unit in store.units.values() if unit.split == split]
        counts = (sum(getattr(unit, name) for unit in units) for name in ("inputs", "rows", "rejected", "unavailable"))
        found.append(SplitFacts(split, *counts))
    return tuple(found)


def classes_of(labels: Labels, split_codes: np.ndarray[Any, np.dtype[np.int64]], splits: int) -> tuple[ClassFacts, ...]:
    """Returns the rows of each label in each split, the most frequent label first."""
    has_one = labels.codes != NONE
    counts = np.zeros((len(labels.names), splits), np.int64)
    np.add.at(counts, (labels.codes[has_one], split_codes[has_one]), 1)
    return tuple(ClassFacts(name, tuple(own)) for name, own in zip(labels.names, counts.tolist(), strict=True))


def rejects_of(store: Store, splits: Sequence[str]) -> tuple[Reject, ...]:
    """Returns the inputs of these splits that have no row, by reason, the most frequent one first."""
    keys: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    counts: defaultdict[tuple[str, str], int] = defaultdict(int)
    for path, unit in store.units.items():
        if unit.split not in splits or unit.rows == unit.inputs:
            continue
        table = store.read_table(path, ["key", "status", "reason"])
        table = table.filter(pc.not_equal(table["status"], OK))
        reasons = pc.fill_null(table["reason"], pa.scalar("no reason is stated"))
        columns = (column.to_pylist() for column in (table["status"], reasons, table["key"]))
        for status, reason, key in zip(*columns, strict=True):
            counts[status, reason] += 1
            if counts[status, reason] <= _EXAMPLES:
                keys[status, reason].append(key)
    order = sorted(counts, key=lambda own: (-counts[own], own))
    return tuple(
        Reject(reason, status, counts[status, reason], tuple(keys[status, reason]))
        for status, reason in itertools.islice(order, _MOST_REASONS)
    )
