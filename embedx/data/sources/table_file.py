"""Reads table files, `.csv`, `.tsv`, `.jsonl`, `.parquet` and `.arrow`, each also as `.gz`; faults name the line."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from embedx.arrow import plain, replaced
from embedx.data.reading.files import is_url, open_file, plain_name
from embedx.data.sources.encodings import fault_of, to_utf8
from embedx.data.sources.inline import holds_bytes, holds_images, is_bytes
from embedx.data.sources.json_lines import parse_json_lines
from embedx.data.sources.written import as_written, differing
from embedx.errors import ConfigError
from embedx.system.machine import available_memory
from embedx.values import size_text

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_FORMATS = (*_DELIMITERS, ".jsonl", ".parquet", ".arrow")
_MOST_UNPACKED, _MOST_TIMES = 256 << 20, 50
"""The bytes to which a table behind a URL may unpack, or how many times as many as were sent; texts pack to a tenth."""
_PARSED = 4
"""The times that a table takes its own bytes in memory while it is parsed."""
_PART = 1 << 20
_TYPED = frozenset({".parquet", ".arrow"})
"""The formats whose columns have types."""
TABLE_SUFFIXES = frozenset(f"{suffix}{packed}" for suffix in _FORMATS for packed in ("", ".gz"))
"""The suffixes of tables' files, in lower case."""


def table_format(location: str) -> str | None:
    """Returns the suffix of a table's format, without `.gz`; None for any other file."""
    name = plain_name(location).lower().removesuffix(".gz")
    return next((suffix for suffix in _FORMATS if name.endswith(suffix)), None)


class TableFile:
    """One table; a text format is held in memory as a whole.

    Embedded images (columns of structs with `bytes`, as in Hugging Face's image datasets) are read as their `path`s,
    and columns of bytes as nulls if `paths` names them and they hold images.

    Raises:
        ConfigError: If it can't be read, or is text in another encoding than UTF-8.
    """

    def __init__(
        self,
        location: str,
        partitions: Mapping[str, str | int | None] | None = None,
        paths: Collection[str] = (),
    ) -> None:
        self.location = location
        self._paths = paths
        self.partitions = partitions or {}
        """The further columns, each of one value, that the names of the file's folders give."""
        self.embedded: frozenset[str] = frozenset()
        """The names of the columns of embedded images."""
        self.written: dict[str, pa.ChunkedArray] = {}
        """The texts that columns of guessed types have in the file, where they differ (see `written.WRITTEN`)."""
        self._format = table_format(location)
        self._text = b"" if self._format in _TYPED else self._read_text()

    def read(self, names: Collection[str] = ()) -> pa.Table:
        """Reads the table; types are guessed where the file has none.

        Args:
            names: The columns whose texts are wanted as they are `written`, where that takes time to find out.

        Raises:
            ConfigError: If it is malformed; the message names the line.
        """
        if self._format in _TYPED:
            table = self._without_images(self._read_parquet() if self._format == ".parquet" else self.read_arrow())
        elif not self._text.strip():
            table = pa.table({})
        else:
            table = self._read_jsonl(names) if self._format == ".jsonl" else self._read_csv()
        table = plain(table)
        for name, value in self.partitions.items():
            if name not in table.column_names:
                column = pa.nulls(len(table)) if value is None else pa.repeat(value, len(table))
                table = table.append_column(name, column)
        return table

    def place(self, row: int) -> str:
        """Returns the place of a row for a message: the line on which it begins, or its number counting from 0."""
        if self._format in _TYPED:
            return f"row {row}, counting from 0"
        lines = self._json_lines() if self._format == ".jsonl" else (line for line, _ in self._csv_rows())
        header = self._format in _DELIMITERS
        # In a malformed table pyarrow may count rows differently.
        line = next((line for number, line in enumerate(lines) if number == row + header), None)
        return f"row {row}, counting from 0" if line is None else f"line {line}"

    def _fault(self, what: object) -> ConfigError:
        return ConfigError(f"--data {self.location}: {what}")

    def _read_text(self) -> bytes:
        try:
            with open_table_file(self.location) as file:
                data = file.read()
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or error
            raise self._fault(f"can't be read ({reason}); check the table's path") from error
        try:
            return to_utf8(data)
        except UnicodeDecodeError as error:
            raise self._fault(fault_of(data, error)) from error

    def _read_csv(self) -> pa.Table:
        try:
            table = self._parse_csv(pa.csv.ConvertOptions())
            names = table.column_names
            guessed = [
                one.name for one in table.schema if not pa.types.is_string(one.type) and names.count(one.name) == 1
            ]
            as_text = pa.csv.ConvertOptions(include_columns=guessed, column_types=dict.fromkeys(guessed, pa.string()))
            texts = dict(zip(guessed, self._parse_csv(as_text).columns, strict=True)) if guessed else {}
        except pa.ArrowInvalid as error:
            raise self._fault(self._csv_fault() or error) from error
        self.written = differing(texts, table)
        for name in [name for name, given in self.written.items() if _loses_digits(table[name].type, given)]:
            table = replaced(table, name, as_written(table[name], self.written.pop(name)))
        columns = [_without_blanks(column) for column in table.columns]
        return pa.table(columns, names=names)

    def _parse_csv(self, options: pa.csv.ConvertOptions) -> pa.Table:
        parse = pa.csv.ParseOptions(delimiter=_DELIMITERS[str(self._format)], newlines_in_values=True)
        return pa.csv.read_csv(pa.BufferReader(self._text), parse_options=parse, convert_options=options)

    def _csv_fault(self) -> str | None:
        (_, header), *rows = self._csv_rows()
        for line, cells in rows:
            if len(cells) != len(header):
                return f"line {line} has {len(cells)} cells, and the header {len(header)}"
        return None

    def _csv_rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yields the header and all rows that aren't blank, each with the number of its first line."""
        rows = csv.reader(io.StringIO(self._text.decode(), newline=""), delimiter=_DELIMITERS[str(self._format)])
        begin = 1
        try:
            for cells in rows:
                if cells:
                    yield begin, cells
                begin = rows.line_num + 1
        except csv.Error:  # a cell longer than the module allows, as after a quote that nothing closes
            yield begin, []

    def _read_jsonl(self, names: Collection[str]) -> pa.Table:
        try:
            table, self.written = parse_json_lines(self._text, names)
        except pa.ArrowInvalid as error:
            reason, _, row = str(error).removeprefix("JSON parse error: ").partition(" in row ")
            place = f"{self.place(int(row))}: " if re.fullmatch(r"\d+", row) else ""
            raise self._fault(f"{place}{reason}") from error
        return table

    def _json_lines(self) -> Iterator[int]:
        return (number for number, line in enumerate(self._text.split(b"\n"), 1) if line.strip())

    def read_metadata(self) -> pq.FileMetaData:
        """Reads the metadata of a Parquet file, and which of its columns hold images.

        Raises:
            ConfigError: If it is malformed.
        """
        with self._parquet() as (parquet, _):
            return parquet.metadata

    @contextlib.contextmanager
    def _parquet(self) -> Iterator[tuple[pq.ParquetFile, list[str]]]:
        """Opens the file; yields it and the names of its columns."""
        try:
            with open_table_file(self.location) as file, pq.ParquetFile(file) as parquet:
                schema = parquet.schema_arrow
                self._find_images(schema, partial(_first_chunks, parquet))
                yield parquet, schema.names
        except (OSError, EOFError, UnicodeDecodeError, zlib.error, pa.ArrowException) as error:
            reason = getattr(error, "strerror", None) or error
            raise self._fault(f"can't be read as Parquet ({reason}); check the table's path") from error

    def _read_parquet(self) -> pa.Table:
        """Reads all but the bytes of embedded images."""
        with self._parquet() as (parquet, names):
            leaves = [f"{name}.path" if name in self.embedded else name for name in names]
            table = parquet.read(columns=leaves)
            table.validate(full=True)  # for example that its text is UTF-8
            given = dict(zip(table.column_names, table.columns, strict=True))
            return pa.table({name: given.get(name, pa.nulls(len(table))) for name in names})

    def read_arrow(self) -> pa.Table:
        """Maps an Arrow file, a stream or one with a footer; finds out which of its columns hold images.

        Raises:
            ConfigError: If it is malformed.
        """
        try:
            if is_url(self.location) or self.location.lower().endswith(".gz"):
                with open_table_file(self.location) as file:
                    source = pa.BufferReader(file.read())
            else:
                source = pa.memory_map(self.location)
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            table = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source).read_all()
        except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
            reason = getattr(error, "strerror", None) or error
            raise self._fault(f"can't be read as Arrow ({reason}); check the table's path") from error
        self._find_images(table.schema, lambda name: table[name].chunks)
        return table

    def _find_images(self, schema: pa.Schema, chunks: Callable[[str], Iterable[pa.Array]]) -> None:
        self.embedded = frozenset(
            field.name
            for field in schema
            if holds_bytes(field.type)
            or (field.name in self._paths and is_bytes(field.type) and holds_images(chunks(field.name)))
        )

    def _without_images(self, table: pa.Table) -> pa.Table:
        """Returns the table with the paths of embedded images in their place."""
        columns = []
        for name, column in zip(table.column_names, table.columns, strict=True):
            if name in self.embedded:
                has_path = pa.types.is_struct(column.type) and column.type.get_field_index("path") >= 0
                column = (
                    pc.struct_field(column, "path").cast(pa.string()) if has_path else pa.nulls(len(table), pa.string())
                )
            columns.append(column)
        return pa.table(columns, names=table.column_names)


def open_table_file(location: str) -> BinaryIO:
    """Opens the file of a table and decompresses it.

    Raises:
        OSError, EOFError, zlib.error: If it can't be opened or decompressed.
    """
    file = open_file(location)
    if not plain_name(location).lower().endswith(".gz"):
        return file
    with file:
        return _decompressed(file, is_strange=is_url(location))


def _decompressed(file: BinaryIO, *, is_strange: bool) -> BinaryIO:
    """Decompresses a file; a stranger's may not unpack to far more than was sent, and none beyond the memory."""
    packed = file.read()
    most, advice = available_memory() // _PARSED, "make it a .parquet, which is read in parts, or several tables"
    if is_strange and (usual := max(_MOST_UNPACKED, _MOST_TIMES * len(packed))) < most:
        most, advice = usual, "download and unpack it yourself"
    unpacked = io.BytesIO()
    with gzip.open(io.BytesIO(packed)) as parts:
        while part := parts.read(_PART):
            unpacked.write(part)
            if unpacked.tell() > most:
                raise OSError(f"{size_text(len(packed))} unpack to more than {size_text(most)}; {advice}")
    unpacked.seek(0)
    return unpacked


def _first_chunks(parquet: pq.ParquetFile, name: str) -> Iterator[pa.Array]:
    return (batch.column(0) for batch in parquet.iter_batches(64, columns=[name], use_threads=False))


def _loses_digits(guessed: pa.DataType, written: pa.ChunkedArray) -> bool:
    """Tells whether whole numbers were guessed to be fractions, as they are too large for 64 bits."""
    return bool(pa.types.is_floating(guessed) and pc.any(pc.match_substring_regex(written, r"^-?\d{16,}$")).as_py())


def _without_blanks(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.equal(column, ""), None, column) if pa.types.is_string(column.type) else column
