"""The plan as files in the store's folder, which all members of a machine map together: each would else have a copy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow as pa

from embedx.data.plan import Plan
from embedx.store.format.layout import TEMPORARY_SUFFIX, folder_name


def write_plan(root: Path, plan: Plan) -> Plan:
    """Writes the inputs of each split to a temporary file of the store; returns the plan without them."""
    for name, split in plan.splits.items():
        with pa.OSFile(str(_path(root, name)), "wb") as file, pa.ipc.new_file(file, split.table.schema) as writer:
            writer.write_table(split.table)
    splits = {name: dataclasses.replace(split, table=split.table.slice(0, 0)) for name, split in plan.splits.items()}
    return dataclasses.replace(plan, splits=splits)


def map_plan(root: Path, plan: Plan) -> Plan:
    """Returns the plan with the inputs that `write_plan` has written; they take no memory of this process alone.

    Raises:
        OSError: If a file can't be read.
    """
    splits = {}
    for name, split in plan.splits.items():
        with pa.memory_map(str(_path(root, name))) as file:
            splits[name] = dataclasses.replace(split, table=pa.ipc.open_file(file).read_all())
    return dataclasses.replace(plan, splits=splits)


def _path(root: Path, split: str) -> Path:
    return root / f".{folder_name(split)}.plan{TEMPORARY_SUFFIX}"
