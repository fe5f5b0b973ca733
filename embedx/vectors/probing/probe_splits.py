"""The two splits of a probe, and the checks that they go together."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyarrow.compute as pc
from torch import Tensor, isin

from embedx.errors import ConfigError
from embedx.recipe import fingerprint
from embedx.store.format.index import OK
from embedx.store.format.shards import UNKNOWN_TARGET
from embedx.store.reading.reader import Store
from embedx.vectors.probing.probe_config import ProbeConfig
from embedx.vectors.probing.split_rows import Split, class_names, open_split

_MOST_NAMED = 5


@dataclasses.dataclass(frozen=True)
class ProbeSplits:
    """A train and a test split that go together."""

    train: Split
    test: Split
    classes: Tensor
    """The train split's targets [C] int64, sorted."""
    names: list[str]
    """The classes' names."""

    @classmethod
    def open(cls, store: Store, config: ProbeConfig) -> ProbeSplits:
        """Opens both splits, reading every number once.

        Raises:
            ConfigError: If they can't be probed; it names every fault that was found.
            StoreError: If a file is damaged, or a row has NaN or infinity.
        """
        faults: list[str] = []
        splits: list[Split] = []
        for name in (config.train, config.test):
            try:
                splits.append(open_split(store, name, config.name))
            except ConfigError as error:
                faults += error.faults
        faults += [fault for split in splits if (fault := _target_fault(split))]
        ConfigError.check(faults)
        train, test = splits
        classes = train.classes
        names = class_names(train, classes)
        ConfigError.check(_faults(config, train, test, classes, names))
        return cls(train, test, classes, names)

    def about(self) -> dict[str, Any]:
        """Returns the facts on which a head depends, down to the last row, as plain JSON values."""
        manifest = self.train.store.manifest
        return {
            "store": manifest.fingerprint,
            "index": fingerprint(manifest.index),
            "train": self.train.name,
            "rows": len(self.train),
            "tensor": self.train.tensor,
            "targets": self.classes.tolist(),
        }


def _target_fault(split: Split) -> str | None:
    """Returns a message if there are rows without a target."""
    unknown = int((split.targets == UNKNOWN_TARGET).sum())
    if not unknown:
        return None
    rows = split.store.index(split.name, ["key", "target", "status"])
    first = rows.filter(pc.and_(pc.equal(rows["status"], OK), pc.is_null(rows["target"])))["key"][0].as_py()
    return (
        f"split {split.name!r} of {split.store.path}: {unknown} of {len(split)} rows have no target, the first is "
        f"{first!r}; run `embedx extract` on folders named by class, or "
        "with --target-column"
    )


def _faults(config: ProbeConfig, train: Split, test: Split, classes: Tensor, names: list[str]) -> list[str]:
    """Returns a message for each reason why the splits can't be probed."""
    faults = []
    if len(classes) < 2:
        faults.append(f"split {train.name!r} has one class only, {names[0]!r}; there is nothing to tell apart")
    new = test.classes[~isin(test.classes, classes)]
    if len(new) and len(classes) > 1:
        named = zip(class_names(test, test.classes), test.classes, strict=True)
        unseen = [name for name, target in named if target in new]
        more = f" and {len(unseen) - _MOST_NAMED} more" if len(unseen) > _MOST_NAMED else ""
        faults.append(
            f"split {test.name!r} has classes that {train.name!r} has not: {', '.join(unseen[:_MOST_NAMED])}{more}; "
            "they can't be predicted, so leave them out, or embed some of their images for training"
        )
    if config.method == "knn" and config.k > len(train):
        faults.append(f"-k is {config.k}, and split {train.name!r} has {len(train)} rows; give fewer neighbours")
    if train.dim != test.dim:
        faults.append(f"{config.name!r} has {train.dim} numbers a row in {train.name!r}, {test.dim} in {test.name!r}")
    return faults
