"""Sources: where inputs come from. `parse_data` reads `--data`; a kind of source is one module here."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from embedx.config import RESERVED_SPLITS
from embedx.data.sources import features, folder
from embedx.data.sources.base import Source, SourceOptions
from embedx.errors import ConfigError

_KINDS = (features.KIND, folder.KIND)
"""The first that matches is it; any text can be a folder's name."""


def parse_data(specs: Sequence[str], options: SourceOptions | None = None) -> dict[str, Source]:
    """Reads the values of `--data`, each `[NAME=]SOURCE`, into named sources.

    Raises:
        ConfigError: Naming every fault: a missing source, a split name given twice, empty or reserved.
    """
    options = options or SourceOptions()
    sources: dict[str, Source] = {}
    faults: list[str] = []
    for spec in specs:
        name, location = _split_spec(spec)
        if not location:
            faults.append(f"--data {spec!r} names no source; give NAME=SOURCE, such as a folder")
            continue
        try:
            named = next(kind for kind in _KINDS if kind.matches(location)).open(name, location, options)
        except ConfigError as error:
            faults += error.faults
            continue
        for split, source in named.items():
            if split in sources:
                faults.append(
                    f"--data {spec}: the split {split!r} is given twice; name each source, as in NAME={location}"
                )
            elif not split or split.lower() in RESERVED_SPLITS:
                faults.append(f"--data {spec}: a split can't be named {split!r}; choose another name")
            sources[split] = source
    ConfigError.check(faults)
    return sources


def _split_spec(spec: str) -> tuple[str | None, str]:
    """NAME and SOURCE; a name has no `/`, `:` or `?`, and what is there as a whole is a source without a name."""
    name, equals, location = spec.partition("=")
    if equals and not re.search("[/:?]", name) and not os.path.exists(spec):
        return name, location
    return None, spec
