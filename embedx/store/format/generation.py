"""The names of the folders in a bucket in which stores that took an older one's place have their files."""

from __future__ import annotations

import json
import re

from embedx.names import GENERATION

_GENERATION = re.compile(rf"{re.escape(GENERATION)}[0-9]{{6,18}}-[0-9a-f]+")


def generation_in(manifest: bytes) -> str:
    """Returns the generation that a manifest names; empty if it names none, or is damaged, as its reader will say."""
    try:
        name = json.loads(manifest)["generation"]
    except (ValueError, KeyError, TypeError):
        return ""
    return name if isinstance(name, str) and is_generation(name) else ""


def is_generation(name: str) -> bool:
    """Tells whether a folder of this name has the files of a store that took an older one's place."""
    return _GENERATION.fullmatch(name) is not None
