"""Sources of inputs, one module per kind; `parse_data` opens those that `--data` names."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from embedx.data.reading.files import FileReader, check_urls
from embedx.data.sources import dataset, folder, stdin, table, tar
from embedx.data.sources import feature_files as features
from embedx.data.sources.base import Reader, Source
from embedx.data.sources.kinds import SourceKind, SourceOptions
from embedx.errors import ConfigError
from embedx.names import RESERVED_SPLITS

_KINDS = (stdin.KIND, dataset.KIND, table.KIND, tar.KIND, features.KIND, folder.KIND)
"""The kinds of source in the order in which they are tried; the folder is last, because any text can name one."""


def parse_data(specs: Sequence[str], options: SourceOptions | None = None) -> dict[str, Source]:
    """Opens the values of `--data`, each `[NAME=]SOURCE`, as one source per split.

    Raises:
        ConfigError: If there are faults, all of which it names: a source that does not exist, a split name that is
            empty, reserved or given twice in any case, an option that applies to none of the sources.
    """
    options = options or SourceOptions()
    sources: dict[str, Source] = {}
    faults: list[str] = []
    used: set[SourceKind] = set()
    for spec in specs:
        name, location = _split_spec(spec)
        if not location:
            faults.append(f"--data {spec!r} names no source; give NAME=SOURCE, such as a folder")
            continue
        try:
            check_urls([location])
        except ConfigError as error:
            faults += error.faults
            continue
        kind = next(kind for kind in _KINDS if kind.matches(location))
        if kind.once and kind in used:
            faults.append(f"--data {spec}: {location} can be read only once; give it to one split")
            continue
        used.add(kind)
        try:
            named = kind.open(name, location, options)
        except ConfigError as error:
            faults += error.faults
            continue
        for split, source in named.items():
            if split in sources:
                faults.append(
                    f"--data {spec}: the split {split!r} is given twice; name each source, as in NAME={location}"
                )
            elif twins := [other for other in sources if other.lower() == split.lower()]:
                faults.append(
                    f"--data {spec}: the splits {twins[0]!r} and {split!r} differ in case alone, and not every file "
                    "system can tell them apart; rename one"
                )
            elif not split or split.lower() in RESERVED_SPLITS:
                faults.append(f"--data {spec}: a split can't be named {split!r}; choose another name")
            sources[split] = source
    ConfigError.check(faults + _unused_options(options, used))
    return sources


def find_reader(location: str, offset: int | None, options: SourceOptions) -> Reader:
    """Returns a reader for an input, given by location and offset in an index table, without listing its source.

    Raises:
        ConfigError: If the location can't be opened.
    """
    if offset is None:
        return FileReader()
    kind = next(kind for kind in _KINDS if kind.matches(location))
    return kind.reader or next(iter(kind.open(None, location, options).values())).reader


def _unused_options(options: SourceOptions, used: set[SourceKind]) -> list[str]:
    faults = []
    for name in sorted(frozenset[str]().union(*(kind.options for kind in _KINDS))):
        if getattr(options, name) != getattr(SourceOptions(), name) and not any(name in kind.options for kind in used):
            plurals = " and ".join(kind.plural for kind in _KINDS if name in kind.options)
            faults.append(f"--{name.replace('_', '-')} is for {plurals}, and no source is of that kind")
    return faults


def _split_spec(spec: str) -> tuple[str | None, str]:
    """Splits NAME=SOURCE; a name has no `/`, `:` or `?`, and a spec that exists as a whole file has no name."""
    name, equals, location = spec.partition("=")
    if equals and not re.search("[/:?]", name) and not os.path.exists(spec):
        return name, location
    return None, spec
