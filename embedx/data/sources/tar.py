"""Tar files in WebDataset's layout: `shard-{000000..000009}.tar`, read in place, never unpacked."""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

from embedx.data.reading.files import FileReader, RejectedInputError, absolute, is_url, open_file, plain_name
from embedx.data.sources.base import COMMON_SCHEMA, SINGLE_SPLIT, TARGET, Source, as_text, samples_table, size_and_time
from embedx.data.sources.kinds import TARGET_COLUMNS, SourceKind, SourceOptions, as_target, target_column
from embedx.data.sources.patterns import find_files, short_names
from embedx.data.sources.table_file import parse_json_lines
from embedx.data.sources.tar_index import TarIndex
from embedx.errors import ConfigError
from embedx.names import RESERVED_COLUMNS

_NAME = re.compile(r"\.(tar(\.\w+)?|t[gbx]z2?|tzst)$", re.IGNORECASE)
_CONNECTIONS = 8
"""The number of remote tars that are indexed at a time."""
_TAKEN = RESERVED_COLUMNS.union(COMMON_SCHEMA.names)
"""The names that no metadata may have; an entry of a `.json` with such a name gets the prefix `json.`."""


class TarReader(FileReader):
    """Reads images from their place in a tar."""

    def read(self, path: bytes, offset: int | None = None, size: int | None = None) -> bytes:
        """Reads `size` bytes from `offset` on.

        Raises:
            RejectedInputError: If the bytes can't be read, or the sample has no image.
        """
        if offset is None:
            raise RejectedInputError("the sample has no image: none of its members is one, or a link to one in the tar")
        return super().read(path, offset, size)


def open_tars(name: str | None, location: str, options: SourceOptions) -> Mapping[str, Source]:
    """Opens a tar, or all tars that a pattern names; each is read once, from header to header.

    Members with the same base name are one sample. Its key is `TAR/BASE`, where TAR is the tar's name below the folder
    that all tars share. Metadata: `tar`, that name; `parent`, the folders inside the tar, null if there are none; then
    the contents of `.cls`, `.json` and `.txt` members.

    Raises:
        ConfigError: If a tar is missing, damaged, cut short or compressed, or there are no inputs in the tars.
    """
    paths = [absolute(path) for path in find_files(location)]
    faults: list[str] = []

    def attempt(path: str, tar: str) -> pa.Table | None:
        try:
            return _scan(path, tar, options.suffixes)
        except ConfigError as error:
            faults.extend(error.faults)
            return None

    # One thread keeps Python busy with local files; remote ones spend most of the time waiting.
    with ThreadPoolExecutor(_CONNECTIONS if is_url(location) else 1) as pool:
        tables = list(pool.map(attempt, paths, short_names(paths)))
    ConfigError.check(sorted(faults))
    samples = pa.concat_tables(tables)
    if samples["offset"].null_count == len(samples):
        named = " ".join(sorted(options.suffixes))
        raise ConfigError(f"--data {location}: no {options.content} in it; looked for members named {named}")
    samples, metadata = _with_columns(location, samples, options.target_column)
    return {name or SINGLE_SPLIT: Source(metadata, TarReader(), lambda: samples)}


def _scan(path: str, tar: str, suffixes: frozenset[str]) -> pa.Table:
    """Lists one tar's samples, with the columns `tar` and `parent`, and those of `TarIndex.texts`."""
    try:
        with open_file(path, in_parts=True) as file:
            index = TarIndex(file, suffixes)
    except OSError as error:
        raise ConfigError(f"{path} can't be read ({error.strerror or error})") from error
    except ConfigError as error:
        raise ConfigError([f"{path} {fault}" for fault in error.faults]) from error
    bases = [as_text(base.encode("utf-8", "surrogateescape")) for base in index.bases]
    count = len(bases)
    columns = {
        "key": [f"{tar}/{base}" for base in bases],
        "path": [os.fsencode(path)] * count,
        "offset": [image and image.offset for image in index.images],
        "size": [image and image.size for image in index.images],
        "mtime_ns": [size_and_time(os.fsencode(path))[1]] * count,
        "tar": [tar] * count,
        "parent": [posixpath.dirname(base) or None for base in bases],
        **index.texts,
    }
    return samples_table(columns, pa.null())


def _with_columns(location: str, samples: pa.Table, given_target: str | None) -> tuple[pa.Table, tuple[str, ...]]:
    """Turns the contents of members into the target and columns of metadata, whose names it returns too."""
    metadata = {"tar": samples["tar"], "parent": samples["parent"]}
    for name in ("cls", "txt"):
        if samples[name].null_count < len(samples):
            metadata[name] = _numbers_if_all_are(samples[name]) if name == "cls" else samples[name]
    entries = _entries(samples)
    for name, column in entries.items():
        while name in metadata or name in _TAKEN:
            name = f"json.{name}"
        metadata[name] = column
    candidates = {**entries, **metadata}
    if given_target is not None and given_target not in candidates:
        names = ", ".join(candidates)
        raise ConfigError(f"--data {location}: there is no --target-column {given_target!r}; its columns are {names}")
    tried = ("cls", *TARGET_COLUMNS)
    usable = (name for name in tried if name in candidates and as_target(candidates[name]) is not None)
    chosen = given_target or next(usable, None)
    columns = {name: samples[name] for name in (*COMMON_SCHEMA.names, TARGET)} | metadata
    if chosen is not None:
        columns[TARGET] = target_column(location, chosen, candidates[chosen])
    return pa.table(columns), tuple(metadata)


def _numbers_if_all_are(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    return texts.cast(pa.int64()) if pc.all(pc.match_substring_regex(texts, r"^-?\d{1,18}$")).as_py() else texts


def _entries(samples: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Returns a column per entry of the samples' `.json` objects, typed as JSON lines are."""
    if samples["json"].null_count == len(samples):
        return {}
    keys = samples["key"]
    lines = bytearray()
    for row, content in enumerate(samples["json"]):
        try:
            entries = json.loads(content.as_py() or "{}")
        except ValueError as error:
            raise ConfigError(f"{keys[row]}: its .json can't be read ({error}); correct it") from error
        if not isinstance(entries, dict):
            raise ConfigError(f'{keys[row]}: its .json holds no object; give one, such as {{"label": 3}}')
        lines += json.dumps(entries).encode() + b"\n"
    try:
        table = parse_json_lines(bytes(lines))
    except pa.ArrowInvalid as error:
        reason, _, number = str(error).removeprefix("JSON parse error: ").partition(" in row ")
        place = f"{keys[int(number)]}: its .json: " if number.isdigit() else "its .json members: "
        raise ConfigError(f"{place}{reason}; correct it") from error
    return dict(zip(table.column_names, table.columns, strict=True))


KIND = SourceKind(
    lambda location: _NAME.search(plain_name(location)) is not None and not os.path.isdir(location),
    open_tars,
    plural="tars",
    options=frozenset({"target_column"}),
    reader=lambda location, options: TarReader(),
)
