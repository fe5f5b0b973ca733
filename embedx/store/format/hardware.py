"""The hardware that computed a store's units, as their index tables state it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from embedx.recipe import canonical_json
from embedx.store.format.differences import difference_text, leaves_that_differ
from embedx.store.format.index import UnitEntry

_THREADS = "threads"
"""The entry that may differ from member to member on the same hardware."""


def distinct(entries: Iterable[UnitEntry]) -> list[dict[str, Any]]:
    """Returns the different environments of units, with the number of `units` of each, the most frequent first.

    Units of an older embedx don't state theirs.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if entry.environment is not None:
            environment = found.setdefault(canonical_json(entry.environment), {**entry.environment, "units": 0})
            environment["units"] += 1
    return sorted(found.values(), key=lambda environment: -environment["units"])


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns a phrase for each difference between the hardware and libraries of two units."""
    parts = ({name: value for name, value in one.items() if name not in (_THREADS, "units")} for one in (old, new))
    return [difference_text(*one) for one in leaves_that_differ("", *parts)]
