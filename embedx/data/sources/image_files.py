"""Images named one by one, by the user, a shell's wildcards or a quoted pattern."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import pyarrow as pa

from embedx.data.reading.files import FileReader, absolute, is_url, plain_name
from embedx.data.sources.base import SINGLE_SPLIT, Source, as_text, samples_table, sizes_and_times
from embedx.data.sources.kinds import SUFFIXES, SourceKind, SourceOptions
from embedx.data.sources.patterns import find_files
from embedx.data.sources.selection import LeftOut, Selection
from embedx.errors import ConfigError


def open_files(name: str | None, locations: Sequence[str], options: SourceOptions) -> Mapping[str, Source]:
    """Opens files, given by paths and URLs, as one source in the order in which they are given.

    The key is the path as given, whether a shell or embedx expanded a pattern. There are no classes. Metadata:
    `parent`, the path without its last part, null if it has only one. A file that is no image, by its ending or else by
    its first bytes, is left out.

    Raises:
        ConfigError: If one is not there, or none is an image.
    """
    paths = [path for location in locations for path in find_files(location)]
    selection, left_out = Selection(options), LeftOut()
    taken = [path for path in paths if _takes(selection, path, left_out)]
    shown = paths[0] if len(paths) == 1 else f"{paths[0]} … {paths[-1]}"
    if not taken:
        raise ConfigError(
            f"--data {shown}: a file that is none of {options.content}, tables such as .csv, and tars; give one of "
            "these, or a folder; a list of paths is read by --data - from stdin"
        )
    notices = [f"--data {shown}: left out: {text}"] if (text := left_out.describe()) else []
    advice = "name each file once"
    return {name or SINGLE_SPLIT: Source(("parent",), FileReader(), lambda: _scan(taken), advice, notices=notices)}


def _takes(selection: Selection, path: str, left_out: LeftOut) -> bool:
    *folder, name = os.fsencode(plain_name(path)).strip(b"/").split(b"/")
    return selection.takes_file(folder, name, None if is_url(path) else os.fsencode(path), left_out, named=True)


def _scan(paths: Sequence[str]) -> pa.Table:
    whole = [os.fsencode(absolute(path)) for path in paths]
    sizes, times = sizes_and_times(pa.chunked_array([pa.array(whole, pa.binary())]))
    columns = {
        "key": [as_text(os.fsencode(path)) for path in paths],
        "path": whole,
        "size": sizes,
        "mtime_ns": times,
        "parent": [as_text(os.fsencode(os.path.dirname(path))) or None for path in paths],
    }
    return samples_table(columns, pa.null())


def _is_file(location: str) -> bool:
    has_ending = os.path.splitext(plain_name(location))[1].lower() in SUFFIXES["images"]
    return os.path.isfile(location) or (has_ending and not os.path.isdir(location))


KIND = SourceKind(
    _is_file,
    lambda name, location, options: open_files(name, [location], options),
    plural="images",
    options=frozenset({"include", "exclude"}),
    open_many=open_files,
)
