"""The journal of a unit under way: its rows so far, so that a run that is killed loses only the last of them.

A journal is a sequence of records, each synced to disk before the next one is written:

    8 bytes    the length of the identities
    8 bytes    the length of the tensors
    32 bytes   the sha256 of all the rest
    identities the n inputs, as an Arrow IPC stream with the columns of `index.ROW_SCHEMA` and the source's own; its
               metadata has one JSON entry that names the format, the recipe and the unit
    tensors    [n, ...] each, as a safetensors file

A kill may leave the last record cut off. It is ignored then, as if it had not been begun.

Shapes: n rows of one record.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from embedx.errors import StoreError
from embedx.names import INDEX
from embedx.store.format.layout import Unit
from embedx.store.format.open_folder import stored_file
from embedx.store.format.shards import FORMAT, HEADER_KEY, ShardHeader, encode_shard
from embedx.store.format.store_folder import StoreFile
from embedx.store.format.typed_json import parse_json, typed

if TYPE_CHECKING:  # rows are counted without torch
    from torch import Tensor

_LENGTH_BYTES = 8
_PREFIX_BYTES = 2 * _LENGTH_BYTES + hashlib.sha256().digest_size
_METADATA_KEY = HEADER_KEY.encode()


class Record(NamedTuple):
    """One record of a journal, whose sha256 is right."""

    rows: pa.Table
    """The identities of the n inputs."""
    tensors: memoryview
    """The bytes of the tensors."""
    end: int
    """The place in the file behind the record."""

    def load(self) -> dict[str, Tensor]:
        """Returns the tensors [n, ...] by name: `embeddings` and one per extra layer."""
        import safetensors.torch

        tensors = safetensors.torch.load(bytes(self.tensors))
        del tensors[INDEX]
        return tensors


def encode_record(unit: Unit, recipe: str, tensors: Mapping[str, Tensor], rows: pa.Table) -> list[bytes | memoryview]:
    """Encodes one record; no tensor is copied.

    Args:
        unit: The unit that the rows belong to.
        recipe: The recipe's fingerprint.
        tensors: The tensors [n, ...] by name, contiguous, on the CPU.
        rows: The identities of the n inputs.

    Returns:
        The bytes, in parts.
    """
    header = ShardHeader(FORMAT, unit.split, None, unit.number, recipe)
    index = np.array(rows["index"].to_pylist(), np.int64)  # to_numpy() would import pandas
    _, parts = encode_shard("", {**tensors, INDEX: index}, header)
    rows = rows.replace_schema_metadata({_METADATA_KEY: header.encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    identities = sink.getvalue().to_pybytes()
    lengths = (len(identities), sum(map(len, parts)))
    prefix = b"".join(length.to_bytes(_LENGTH_BYTES, "little") for length in lengths)
    return [prefix + _sha256([identities, *parts]), identities, *parts]


def records(path: Path | StoreFile, unit: Unit, recipe: str) -> Iterator[Record]:
    """Yields the whole records of a unit's journal in order, and ends at one that is cut off.

    Raises:
        StoreError: At a record that is damaged, or belongs to another unit or recipe, and if the file can't be read.
    """
    try:
        with stored_file(path).open() as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            while (record := _read(file, size, unit, recipe)) is not None:
                yield record
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"{path}: a record of the journal can't be used ({error})") from error


def _read(file: BinaryIO, size: int, unit: Unit, recipe: str) -> Record | None:
    """Reads the next record; returns None at the end, and for one that is cut off."""
    prefix = file.read(_PREFIX_BYTES)
    lengths = [int.from_bytes(prefix[start : start + _LENGTH_BYTES], "little") for start in (0, _LENGTH_BYTES)]
    if len(prefix) < _PREFIX_BYTES or sum(lengths) > size - file.tell():
        return None
    data = memoryview(file.read(sum(lengths)))
    if _sha256([data]) != prefix[2 * _LENGTH_BYTES :]:
        raise ValueError("its sha256 is wrong; the file was damaged")
    with pa.ipc.open_stream(data[: lengths[0]]) as stream:
        rows = stream.read_all()
    rows.validate(full=True)
    header = typed(parse_json((rows.schema.metadata or {})[_METADATA_KEY]), ShardHeader)
    if header != ShardHeader(FORMAT, unit.split, None, unit.number, recipe):
        raise ValueError(f"it is of {header}")
    return Record(rows.replace_schema_metadata(None), data[lengths[0] :], file.tell())


def _sha256(parts: Iterable[bytes | memoryview]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()
