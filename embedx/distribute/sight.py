"""Checks that a member's machine sees what the driver's machine sees: the store and the inputs, at the same places."""

from __future__ import annotations

import os
import socket

from embedx.data.plan import Plan
from embedx.data.reading.files import FileReader
from embedx.data.sources.base import as_text
from embedx.distribute.messages import Setup
from embedx.distribute.plan_files import map_plan
from embedx.errors import ConfigError
from embedx.store.format.layout import StoreRoot
from embedx.store.format.manifest import Manifest, existing_store

_LOOKED_AT = 8
"""The number of a split's files of which one has to be there."""


def plan_seen(setup: Setup) -> Plan:
    """Returns the plan, from the store's folder.

    Raises:
        ConfigError: If this machine does not see it.
    """
    try:
        return map_plan(setup.root, setup.plan)
    except OSError as error:
        raise ConfigError(
            f"{socket.gethostname()} does not see the store that {setup.host} writes at {setup.root} "
            f"({error.strerror}); --out has to be a folder that all machines share, at the same place"
        ) from error


def check_inputs(plan: Plan, host: str) -> None:
    """Checks that this machine sees the files that the driver's machine, of this name, has listed.

    Raises:
        ConfigError: If none of a split's first files is there.
    """
    for split in plan.splits.values():
        first = split.table["path"].slice(0, _LOOKED_AT).to_pylist()
        paths = [path for path in first if b"://" not in path]
        if paths and isinstance(split.reader, FileReader) and not any(map(os.path.exists, paths)):
            raise ConfigError(
                f"{socket.gethostname()} does not see the inputs of split {split.name!r}, such as {as_text(paths[0])}, "
                f"which {host} has listed; mount them at the same place on all machines"
            )


def check_store(root: StoreRoot, manifest: Manifest, host: str) -> None:
    """Checks that this machine sees the store that the driver's machine, of this name, has begun.

    Raises:
        ConfigError: If it sees none, or another one.
    """
    found = existing_store(root)
    if found is None or found.fingerprint != manifest.fingerprint:
        what = "no store" if found is None else "another store"
        raise ConfigError(
            f"{socket.gethostname()} sees {what} at {root}, and not the one that {host} writes; --out has to be a "
            "folder that all machines share, at the same place"
        )
