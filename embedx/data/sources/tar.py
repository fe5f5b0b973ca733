"""Tar files in WebDataset's layout: `shard-{000000..000009}.tar`, read in place, never unpacked."""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

from embedx.data.reading.files import FileReader, RejectedInputError, absolute, is_url, open_file, plain_name
from embedx.data.sources.base import COMMON_SCHEMA, SINGLE_SPLIT, TARGET, Source, as_text, samples_table, size_and_time
from embedx.data.sources.json_lines import check_depth, parse_json_lines
from embedx.data.sources.kinds import SourceKind, SourceOptions
from embedx.data.sources.patterns import find_files, short_names
from embedx.data.sources.selection import LeftOut, Selection
from embedx.data.sources.tar_index import TarIndex
from embedx.data.sources.targets import TARGET_COLUMNS, find_target
from embedx.data.sources.written import WRITTEN, as_written, differing
from embedx.errors import ConfigError
from embedx.names import RESERVED_COLUMNS
from embedx.values import MAX_BYTES

_NAME = re.compile(r"\.(tar(\.\w+)?|t[gbx]z2?|tzst)$", re.IGNORECASE)
_CONNECTIONS = 8
"""The number of remote tars that are indexed at a time."""
_USUAL = ("cls", *TARGET_COLUMNS)
"""The columns that are tried for the target, where `--target-column` names none."""
_TAKEN = RESERVED_COLUMNS.union(COMMON_SCHEMA.names)
"""The names that no metadata may have; an entry of a `.json` with such a name gets the prefix `json.`."""


class TarReader(FileReader):
    """Reads images from their place in a tar."""

    def read(self, path: bytes, offset: int | None = None, size: int | None = None, most: int = MAX_BYTES) -> bytes:
        """Reads `size` bytes from `offset` on.

        Raises:
            RejectedInputError: If the bytes can't be read, or the sample has no image.
        """
        if offset is None:
            raise RejectedInputError("the sample has no image: none of its members is one, or a link to one in the tar")
        return super().read(path, offset, size, most)

    def is_range(self, path: bytes, offset: int | None) -> bool:
        """Tells whether the sample has an image, which is a part of the tar."""
        return offset is not None


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
    selection, left_out = Selection(options), LeftOut()

    def attempt(path: str, tar: str) -> pa.Table | None:
        try:
            return _scan(path, tar, selection, left_out)
        except ConfigError as error:
            faults.extend(error.faults)
            return None

    # One thread keeps Python busy with local files; remote ones spend most of the time waiting.
    with ThreadPoolExecutor(_CONNECTIONS if is_url(location) else 1) as pool:
        tables = list(pool.map(attempt, paths, short_names(paths)))
    ConfigError.check(sorted(faults))
    samples = pa.concat_tables(tables)
    if samples["offset"].null_count == len(samples):
        named = " ".join(sorted(selection.suffixes))
        raise ConfigError(f"--data {location}: no {options.content} in it; looked for members named {named}")
    samples, metadata, notices = _with_columns(location, samples, options)
    if text := left_out.describe():
        notices = (*notices, f"--data {location}: left out: {text}")
    return {name or SINGLE_SPLIT: Source(metadata, TarReader(), lambda: samples, notices=notices)}


def _scan(path: str, tar: str, selection: Selection, left_out: LeftOut) -> pa.Table:
    """Lists one tar's samples whose image, or else name, the patterns let in.

    Columns besides the common ones: `tar`, `parent`, and those of `TarIndex.texts`.
    """
    try:
        with open_file(path, in_parts=True) as file:
            index = TarIndex(file, selection.suffixes)
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
    members = [image.name if image else base for image, base in zip(index.images, index.bases, strict=True)]
    taken = [selection.takes_member(member, left_out) for member in members]
    return samples_table(columns, pa.null()).filter(pa.array(taken, pa.bool_()))


def _with_columns(
    location: str, samples: pa.Table, options: SourceOptions
) -> tuple[pa.Table, tuple[str, ...], tuple[str, ...]]:
    """Turns the contents of members into the target and metadata; returns the metadata's names and notices too."""
    metadata = {"tar": samples["tar"], "parent": samples["parent"]}
    written: dict[str, pa.ChunkedArray] = {}
    for name in ("cls", "txt"):
        if samples[name].null_count < len(samples):
            metadata[name] = samples[name]
    if "cls" in metadata and (numbers := _as_numbers(samples["cls"])) is not None:
        metadata["cls"] = numbers
        written |= differing({"cls": samples["cls"]}, pa.table({"cls": numbers}))
    entries, written_entries = _entries(samples, [*filter(None, (options.target_column, options.group_key)), *_USUAL])
    for name, column in entries.items():
        stored = name
        while stored in metadata or stored in _TAKEN:
            stored = f"json.{stored}"
        metadata[stored] = column
        if name in written_entries:
            written[stored] = written_entries[name]
    candidates = {**entries, **metadata}
    given = options.target_column
    if given is not None and given not in candidates:
        names = ", ".join(candidates)
        raise ConfigError(f"--data {location}: there is no --target-column {given!r}; its columns are {names}")
    target = find_target(location, candidates, {**written_entries, **written}, _USUAL, given)
    if target.has_names and (texts := written.pop(str(target.name), None)) is not None:
        metadata[str(target.name)] = as_written(metadata[str(target.name)], texts)
    columns = {name: samples[name] for name in COMMON_SCHEMA.names} | {TARGET: target.column} | metadata
    if target.written is not None:
        written[TARGET] = target.written
    columns |= {name + WRITTEN: texts for name, texts in written.items()}
    return pa.table(columns), tuple(metadata), target.notices


def _as_numbers(texts: pa.ChunkedArray) -> pa.ChunkedArray | None:
    return texts.cast(pa.int64()) if pc.all(pc.match_substring_regex(texts, r"^-?\d{1,18}$")).as_py() else None


def _entries(samples: pa.Table, names: Sequence[str]) -> tuple[dict[str, pa.ChunkedArray], dict[str, pa.ChunkedArray]]:
    """Returns a column per entry of the samples' `.json` objects, read as JSON lines are."""
    if samples["json"].null_count == len(samples):
        return {}, {}
    keys = samples["key"]
    lines = []
    for row, content in enumerate(samples["json"].to_pylist()):
        try:
            content = re.sub(r"(?<!\\)((?:\\\\)*)\\(?=x[0-9a-f]{2})", r"\1\\\\", content or "{}")  # no escape of JSON
            check_depth(content.encode())
            entries = json.loads(content)
        except ValueError as error:
            raise ConfigError(f"{keys[row]}: its .json can't be read ({error}); correct it") from error
        if not isinstance(entries, dict):
            raise ConfigError(f'{keys[row]}: its .json holds no object; give one, such as {{"label": 3}}')
        lines.append(re.sub(r"[\r\n]", " ", content))  # as they are written, on one line each
    try:
        table, written = parse_json_lines("\n".join(lines).encode(), names)
    except pa.ArrowInvalid as error:
        reason, _, number = str(error).removeprefix("JSON parse error: ").partition(" in row ")
        place = f"{keys[int(number)]}: its .json: " if number.isdigit() else "its .json members: "
        raise ConfigError(f"{place}{reason}; correct it") from error
    return dict(zip(table.column_names, table.columns, strict=True)), written


KIND = SourceKind(
    lambda location: _NAME.search(plain_name(location)) is not None and not os.path.isdir(location),
    open_tars,
    plural="tars",
    options=frozenset({"target_column", "include", "exclude"}),
    reader=lambda location, options: TarReader(),
)
