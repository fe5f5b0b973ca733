"""The differences between two JSON values, such as two stores' recipes, and their wording: old → new."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from embedx.store.format.manifest import Manifest


def leaves_that_differ(name: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Goes into dicts, and yields the dotted name of each value that differs, with the old one and the new one.

    The names begin with `name`; an entry that is missing counts as None.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from leaves_that_differ(f"{name}.{key}" if name else key, old.get(key), new.get(key))
    elif old != new:
        yield name, old, new


def difference_text(name: str, old: Any, new: Any) -> str:
    """Words one difference; a sha256 and a long value are cut off."""
    return f"{name}: {_short(old)} → {_short(new)}"


def _short(value: Any) -> str:
    text = str(value)
    longest = 12 if re.fullmatch(r"[0-9a-f]{64}", text) else 80
    return text if len(text) <= longest else f"{text[:longest]}…"


def differences_of(old: Manifest, new: Manifest) -> list[str]:
    """Returns a phrase for each difference between two stores' recipes and plans, but for the inputs."""
    old_plan, new_plan = ({**one.plan.to_json(), "splits": {}, "classes": []} for one in (old, new))
    leaves = [
        *leaves_that_differ("recipe", old.recipe.to_json(), new.recipe.to_json()),
        *leaves_that_differ("plan", old_plan, new_plan),
    ]
    return [difference_text(*leaf) for leaf in leaves]
