"""The plan as files in the store's folder, which all members of a machine map together: each would else have a copy.

Of a store in a bucket each member fetches a copy, which is a file without a name on its machine.
"""

from __future__ import annotations

import dataclasses
import io
import tempfile
from pathlib import Path

import pyarrow as pa

from embedx.data.plan import Plan
from embedx.store.format.layout import TEMPORARY_SUFFIX, StoreRoot, folder_name


def write_plan(root: StoreRoot, plan: Plan) -> Plan:
    """Writes the inputs of each split to a temporary file of the store; returns the plan without them."""
    for name, split in plan.splits.items():
        if isinstance(root, Path):
            with pa.OSFile(str(root / _name(name)), "wb") as file:
                _write(file, split.table)
        else:
            buffer = io.BytesIO()
            _write(buffer, split.table)
            root.put(_name(name), [buffer.getbuffer()])
    splits = {name: dataclasses.replace(split, table=split.table.slice(0, 0)) for name, split in plan.splits.items()}
    return dataclasses.replace(plan, splits=splits)


def map_plan(root: StoreRoot, plan: Plan) -> Plan:
    """Returns the plan with the inputs that `write_plan` has written; they take no memory of this process alone.

    Raises:
        OSError: If a file can't be read.
        StoreError: If one can't be fetched.
    """
    splits = {}
    for name, split in plan.splits.items():
        with tempfile.NamedTemporaryFile() as copy:
            if isinstance(root, Path):
                path = str(root / _name(name))
            else:
                path = copy.name
                copy.write(root.read(_name(name)))
                copy.flush()
            with pa.memory_map(path) as file:
                splits[name] = dataclasses.replace(split, table=pa.ipc.open_file(file).read_all())
    return dataclasses.replace(plan, splits=splits)


def _write(file: io.BytesIO | pa.NativeFile, table: pa.Table) -> None:
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _name(split: str) -> str:
    return f".{folder_name(split)}.plan{TEMPORARY_SUFFIX}"
