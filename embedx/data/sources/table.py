"""A table that lists the images, or holds them: `.csv`, `.tsv`, `.jsonl` and `.parquet`."""

from __future__ import annotations

import os
import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedx.arrow import replaced
from embedx.data.reading.files import FileReader, RejectedInputError, check_urls, is_url
from embedx.data.sources.base import COMMON_SCHEMA, TARGET, Reader, Source, as_text, repeated, sizes_and_times
from embedx.data.sources.inline import image_of, is_inline
from embedx.data.sources.kinds import SourceOptions
from embedx.data.sources.root import Root
from embedx.data.sources.table_file import TableFile, open_table_file, table_format
from embedx.data.sources.table_parts import Part
from embedx.data.sources.targets import TARGET_COLUMNS, Target, find_target
from embedx.data.sources.written import WRITTEN, as_written
from embedx.errors import ConfigError
from embedx.names import RESERVED_COLUMNS
from embedx.values import MAX_BYTES

_PATH_COLUMNS = ("path", "image", "file", "filename", "file_name")
_ODD = r"^/|://|\x00|\\|(^|/)\.{0,2}(/|$)"
r"""The paths that are absolute, URLs, have a `\`, or empty, `.` or `..` parts."""
OPTIONS = frozenset({"path_column", "key_column", "target_column", "split_column", "root"})
"""The fields of SourceOptions that tables are read by."""
UNIQUE = "choose a column of unique names by --key-column"
"""The advice where keys occur more than once."""
_CHUNK = 1 << 16
"""The number of rows that are Python objects at a time."""


class EmbeddedReader:
    """Reads images embedded in a column of tables, or the files that tables name instead; picklable.

    It keeps what it has read last: a row group of Parquet, or all of another table. No file stays open.
    """

    def __init__(self, options: SourceOptions) -> None:
        self.options = options
        self._location = ""
        self._column = ""
        self._root: Root | None = None
        self._metadata: Any = None
        self._starts: list[int] = []
        self._group: int | None = None
        self._images: Any = None

    def __reduce__(self) -> tuple[type[Self], tuple[SourceOptions]]:
        return type(self), (self.options,)

    def read(self, path: bytes, offset: int | None, size: int | None, most: int = MAX_BYTES) -> bytes:
        """Returns the bytes of the image in row `offset`, or of the file if that is None.

        Raises:
            RejectedInputError: If they can't be read, or the row has no image.
        """
        if offset is None:
            return FileReader().read(path, most=most)
        try:
            image = self._image(os.fsdecode(path), offset)
            if image.get("bytes") is not None:
                return bytes(image["bytes"])
            elsewhere = self._root.locate(image["path"]) if self._root and image.get("path") else None
        except ConfigError as error:
            raise RejectedInputError(str(error)) from error
        except (OSError, EOFError, zlib.error, pa.ArrowException, IndexError, ValueError) as error:
            raise RejectedInputError(f"can't be read: {error}") from error
        if elsewhere is None:
            raise RejectedInputError("the row has neither bytes nor a path")
        return FileReader().read(os.fsencode(elsewhere), most=most)

    def is_range(self, path: bytes, offset: int | None) -> bool:
        """Tells whether the table names the image's file, and does not hold the image."""
        return offset is None

    def _image(self, location: str, row: int) -> dict[str, Any]:
        """Returns the struct of a row: its `bytes`, and its `path` if it has one; empty for null."""
        if location != self._location:
            self._open(location)
        group = bisect_right(self._starts, row) - 1
        if group != self._group:
            with open_table_file(location) as file, pq.ParquetFile(file, metadata=self._metadata) as parquet:
                self._images = parquet.read_row_group(group, columns=[self._column], use_threads=False)[self._column]
            self._group = group
        return image_of(self._images[row - self._starts[group]].as_py())

    def _open(self, location: str) -> None:
        table = TableFile(location, paths=_may_be_paths(self.options))
        self._root = Root.of(location, self.options.root)
        if table_format(location) == ".parquet":
            self._metadata = table.read_metadata()
            self._column = str(_path_column(self._metadata.schema.to_arrow_schema().names, table, self.options))
            sizes = [self._metadata.row_group(number).num_rows for number in range(self._metadata.num_row_groups)]
            self._starts, self._group = list(accumulate(sizes, initial=0)), None
        else:  # one group: an Arrow file is mapped, and a text is read as a whole
            rows = table.read_arrow() if table_format(location) == ".arrow" else table.read()
            self._images = rows[str(_path_column(rows.column_names, table, self.options))]
            self._starts, self._group = [0, len(rows)], 0
        self._location = location


class _Roles(NamedTuple):
    """The names of the columns that have a role."""

    path: str
    key: str | None
    split: str | None

    def texts(self) -> list[str]:
        """Returns the columns that are read as text."""
        return [name for name in (self.path, self.key, self.split) if name is not None]


def open_part(part: Part, options: SourceOptions) -> Mapping[str | None, Source]:
    """Opens one file as a source per value of the split column, or as one named None without that column.

    The key is the value of the key column, or else the path as written in the table. For an embedded image it is the
    path beside its bytes if every row has a different one, or else the row's number. The keys of one file of several
    begin with its name, where they are of embedded images, or its folder, where they are relative paths. Metadata: all
    columns but those of the path, the key and the split. A file of several has no sources if it has no rows.

    Raises:
        ConfigError: If the table can't be read, lacks a column or is empty, or a row lacks a value that it needs.
    """
    root = Root.of(part.location, options.root)
    paths = _may_be_paths(options)
    file = TableFile(part.location, part.partitions, paths)
    named = (options.key_column, options.split_column, options.target_column, options.group_key)
    table = file.read([*filter(None, named), *paths, *TARGET_COLUMNS])
    if part.name and len(table) == 0:
        return {}
    if not table.column_names:
        raise ConfigError(f"--data {part.location}: the table is empty")
    roles = _roles(file, table, options)
    table = _with_text(file, table, roles)
    embedded = roles.path in file.embedded or is_inline(table[roles.path])
    if embedded and roles.path not in file.embedded:
        table = replaced(table, roles.path, pa.chunked_array([pa.nulls(len(table), pa.string())]))
    ConfigError.check(
        [
            f"--data {part.location}: {file.place(rows[0])} has no value in the column {column!r} ({len(rows)} in all);"
            " fill it in, or leave the row out"
            for column in roles.texts()
            if not (embedded and column == roles.path) and (rows := _rows_without(table[column]))
        ]
    )
    columns = dict(zip(table.column_names, table.columns, strict=True))
    target = find_target(part.location, columns, file.written, given=options.target_column)
    if target.has_names and target.name in file.written:
        table = replaced(table, str(target.name), as_written(table[target.name], file.written.pop(str(target.name))))
    samples = _samples(file, table, roles, target, root, embedded=embedded)
    notices = (*target.notices, *_notice_of_windows(file, table[roles.path], samples.column(1)))
    if part.name and roles.key is None:
        samples = samples.set_column(0, "key", _keys_of_part(samples.column(0), part, root, embedded=embedded))
    reader = EmbeddedReader(options) if embedded else FileReader()
    if roles.split is None:
        return {None: _source(samples, reader, notices)}
    splits = pc.unique(table[roles.split]).to_pylist()
    return {split: _source(samples.filter(pc.equal(table[roles.split], split)), reader, notices) for split in splits}


def _notice_of_windows(file: TableFile, paths: pa.ChunkedArray, located: pa.ChunkedArray) -> list[str]:
    """Returns a sentence on paths that were read as those of Windows, if there are any."""
    backslashes = pc.and_(pc.match_substring(paths, "\\"), pc.invert(pc.match_substring(located, "\\")))
    count = pc.sum(backslashes).as_py()
    return [f"{file.location}: {count:,} paths have \\ where the files have /, and are read so"] if count else []


def _keys_of_part(keys: pa.ChunkedArray, part: Part, root: Root, *, embedded: bool) -> pa.ChunkedArray:
    """Returns the keys with a prefix that tells the file from others, or its folder from other folders."""
    prefix = part.name if embedded else os.path.dirname(part.name)
    if not prefix or (root.closed and not embedded):
        return keys
    text = as_text(os.fsencode(prefix))
    whole = pc.binary_join_element_wise(pa.repeat(text, len(keys)), keys.cast(pa.string()), "/")
    return whole if embedded else pc.if_else(pc.match_substring_regex(keys, "^/|://"), keys, whole)


def _roles(file: TableFile, table: pa.Table, options: SourceOptions) -> _Roles:
    names = table.column_names
    faults = [f"two columns are named {name!r}; rename one" for name in dict.fromkeys(names) if names.count(name) > 1]
    for option in ("path_column", "key_column", "target_column", "split_column"):
        column = getattr(options, option)
        if column is not None and column not in names:
            faults.append(f"there is no --{option.replace('_', '-')} {column!r}; its columns are {', '.join(names)}")
    path = _path_column(names, file, options)
    if path is None:
        faults.append(f"none of {', '.join(names)} is named {', '.join(_PATH_COLUMNS)}; choose one by --path-column")
    if len(table) == 0:
        faults.append("the table has no rows")
    ConfigError.check([f"--data {file.location}: {fault}" for fault in faults])
    return _Roles(str(path), options.key_column, options.split_column)


def _path_column(names: Sequence[str], file: TableFile, options: SourceOptions) -> str | None:
    # A column of bytes certainly holds the images; a column of paths beside it may name anything.
    candidates = sorted((name for name in _PATH_COLUMNS if name in names), key=lambda name: name not in file.embedded)
    only = list(file.embedded) if len(file.embedded) == 1 else []
    return options.path_column or next(iter([*candidates, *only]), None)


def _may_be_paths(options: SourceOptions) -> tuple[str, ...]:
    return _PATH_COLUMNS if options.path_column is None else (options.path_column,)


def _with_text(file: TableFile, table: pa.Table, roles: _Roles) -> pa.Table:
    for column in roles.texts():
        kind = table[column].type
        if pa.types.is_nested(kind):
            raise ConfigError(f"--data {file.location}: the column {column!r} is {kind}, and can't be read as text")
        table = replaced(table, column, as_written(table[column], file.written.get(column)))
    return table


def _rows_without(column: pa.ChunkedArray) -> list[int]:
    missing = pc.fill_null(pc.equal(column, ""), True)
    rows: list[int] = pc.indices_nonzero(missing).to_pylist()
    return rows


def _source(samples: pa.Table, reader: Reader, notices: tuple[str, ...]) -> Source:
    """Returns the source of samples, whose sizes and times are still to be looked up."""
    names = [name for name in samples.column_names[len(COMMON_SCHEMA) + 1 :] if not name.endswith(WRITTEN)]
    return Source(tuple(names), reader, lambda: _scan(samples), UNIQUE, OPTIONS, notices)


def _scan(samples: pa.Table) -> pa.Table:
    sizes, times = sizes_and_times(samples["path"])  # an embedded image has the time of the table
    sizes = pc.if_else(pc.is_null(samples["offset"]), sizes, None)
    return samples.set_column(3, "size", sizes).set_column(4, "mtime_ns", times)


def _samples(
    file: TableFile, table: pa.Table, roles: _Roles, target: Target, root: Root, *, embedded: bool
) -> pa.Table:
    """Returns the table of a source, without sizes and times."""
    count = len(table)
    if embedded:
        paths, offsets = pa.repeat(os.fsencode(file.location), count), pa.array(range(count), pa.int64())
    else:
        paths, offsets = _located(file, table[roles.path], root), pa.nulls(count, pa.int64())
    key = table[roles.key or roles.path]
    if roles.key is None and embedded and (_rows_without(key) or repeated(key)):
        key = pa.array([f"row-{row:07d}" for row in range(count)])
    # A target is metadata too, so that inputs can be grouped by the names of classes.
    used = {*roles.texts(), *({target.name} & RESERVED_COLUMNS)}
    metadata = table.drop([name for name in table.column_names if name in used])
    nothing = pa.nulls(count, pa.int64())
    columns = [key, paths, offsets, nothing, nothing, target.column, *metadata.columns]
    samples = pa.table(columns, names=[*COMMON_SCHEMA.names, TARGET, *metadata.column_names])
    for name, texts in {**file.written, TARGET: target.written}.items():
        if name in (TARGET, *metadata.column_names) and texts is not None:
            samples = samples.append_column(name + WRITTEN, texts)
    return samples


def _located(file: TableFile, paths: pa.ChunkedArray, root: Root) -> pa.ChunkedArray:
    """Returns the absolute paths, or URLs, as bytes; plain paths are joined to the root all at once."""
    located, start = [], 0
    for batch in pa.table({"path": paths}).to_batches(_CHUNK):
        chunk = batch["path"]
        odd = pc.match_substring_regex(chunk, ".?" if is_url(root.folder) else _ODD)
        whole = []
        for row, path in zip(pc.indices_nonzero(odd).to_pylist(), chunk.filter(odd).to_pylist(), strict=True):
            try:
                whole.append(root.locate(path))
            except ValueError as error:
                raise ConfigError(f"--data {file.location}: {file.place(start + row)}: the path {error}") from error
        check_urls(whole)
        joined = pc.binary_join_element_wise(root.folder.rstrip("/"), chunk, "/")
        located.append(pc.replace_with_mask(joined, odd, pa.array(whole, pa.string())).cast(pa.binary()))
        start += len(chunk)
    return pa.chunked_array(located, pa.binary())
