"""Shards: one safetensors file with the rows of one unit that belong to one group.

Shapes: N rows, D embedding dimension, T tokens.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
from safetensors import SafetensorError, safe_open

from embedx.errors import StoreError, StoreReplacedError
from embedx.names import EMBEDDINGS, INDEX, TARGETS
from embedx.recipe import canonical_json
from embedx.store.format.object_folder import ObjectFolder
from embedx.store.format.open_folder import stored_file
from embedx.store.format.shard_parts import WantedRows, bring_header, bring_rows
from embedx.store.format.store_folder import StoreFile, sha256_of
from embedx.store.format.typed_json import parse_json, typed

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

FORMAT = 1
HEADER_KEY = "embedx"
UNKNOWN_TARGET = -1
"""The target of a row without one, in a shard where others have one."""

_DTYPES = (
    {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "complex64": "C64", "bool": "BOOL"}
    | {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
    | {"int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8"}
    | {"uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8"}
)
"""The safetensors types of which torch can choose rows, by torch's names."""

_CHUNK = 1 << 12
"""The number of rows that are Python objects at a time."""
_JSON = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)
"""The spelling of JSON in safetensors' own library."""


class ShardEntry(NamedTuple):
    """The description of a shard in its unit's index table."""

    path: str
    """The path in the store."""
    group: str | None
    rows: int
    bytes: int
    sha256: str


class ShardHeader(NamedTuple):
    """The description of a shard in itself, as JSON under the key `embedx` of its safetensors metadata.

    It is one key, because safetensors writes several in an order that changes from run to run.
    """

    format: int
    split: str
    group: str | None
    unit: int
    recipe: str
    """The recipe's fingerprint."""
    inputs_sha256: str | None = None
    """The digest of the rows' inputs (see `inputs_digest`); None in journals and in shards of an older embedx."""

    def encode(self) -> str:
        """Returns the JSON, without a digest that is None."""
        entries = self._asdict()
        if self.inputs_sha256 is None:
            del entries["inputs_sha256"]
        return canonical_json(entries)


def inputs_digest(rows: pa.Table) -> str:
    """Returns the sha256 over `index`, as int64, and the inputs' `sha256`, a line each, of a shard's rows in order.

    It ties a shard to the index table of its unit, as the two could be of different stores.
    """
    digest = hashlib.sha256(rows["index"].to_numpy().astype("<i8").tobytes())
    for batch in rows.select(["sha256"]).to_batches(_CHUNK):
        digest.update("".join(f"{sha256 or ''}\n" for sha256 in batch["sha256"].to_pylist()).encode())
    return digest.hexdigest()


def has_inputs(header: ShardHeader, rows: pa.Table) -> bool:
    """Tells whether a shard has the rows of an index table that it should, in the order of `row`."""
    return header.inputs_sha256 in (None, inputs_digest(rows))


@functools.cache  # as numpy takes long to find it
def dtype_name(dtype: torch.dtype | np.dtype[Any]) -> str:
    """Returns torch's name of a type of numbers, such as `float32`; numpy has the same names."""
    return str(dtype).removeprefix("torch.")


def form(tensor: Tensor) -> str:
    """Words type and shape without the number of rows, such as `float32 [N, 512]`; all tensors of a name share it."""
    return f"{dtype_name(tensor.dtype)} [{', '.join(['N', *map(str, tensor.shape[1:])])}]"


def encode_shard(
    path: str, tensors: Mapping[str, Tensor | np.ndarray[Any, Any]], header: ShardHeader
) -> tuple[ShardEntry, list[bytes | memoryview]]:
    """Encodes one shard's file, in the format of https://github.com/huggingface/safetensors#format.

    No tensor is copied, whereas the library's own `save` copies each twice. Tensors of longer numbers come first, so
    that each is aligned.

    Args:
        path: The path of the shard in the store.
        tensors: `embeddings` [N, D] or [N, T, D], `index` [N] int64, `targets` [N] int64 where known, and one
            tensor [N, ...] per extra layer; contiguous, on the CPU; of torch or of numpy.
        header: The shard's description of itself.

    Returns:
        The description for the index table, and the file's bytes, in parts.
    """
    described: dict[str, Any] = {"__metadata__": {HEADER_KEY: header.encode()}}
    parts: list[bytes | memoryview] = []
    end = 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):
        part = _bytes_of(tensors[name])
        begin, end = end, end + part.nbytes
        dtype = dtype_name(tensors[name].dtype)
        if dtype not in _DTYPES:
            raise StoreError(f"{name!r} is {dtype}, and a shard can't hold that; give one of {', '.join(_DTYPES)}")
        described[name] = {"dtype": _DTYPES[dtype], "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
        parts.append(part)
    text = _JSON.encode(described).encode()
    text += b" " * (-len(text) % 8)
    parts.insert(0, len(text).to_bytes(8, "little") + text)
    digest = hashlib.sha256()
    for each in parts:
        digest.update(each)
    size = len(parts[0]) + end
    return ShardEntry(path, header.group, len(tensors[INDEX]), size, digest.hexdigest()), parts


def _bytes_of(tensor: Tensor | np.ndarray[Any, Any]) -> memoryview:
    """Returns a tensor's memory, in which the first byte of a number must be its lowest, as safetensors wants it."""
    import torch  # only here, as a store that is up to date does not need it

    array = tensor.reshape(-1).view(torch.uint8).numpy() if isinstance(tensor, torch.Tensor) else tensor
    return array.data.cast("B")


def open_shard(
    path: Path | StoreFile, *, sha256: str | None = None, wanted: WantedRows | None = None
) -> AbstractContextManager[Any]:
    """Maps a shard's file; `get_tensor(name)` of the open shard reads the numbers when they are touched.

    All tensors have the same number of rows, at least one, and lie in the file in full, so that none takes more memory
    than the file has bytes.

    Args:
        path: The file of the shard.
        sha256: The sha256 that the file must have; None if it is not checked.
        wanted: The rows that will be touched, which alone are fetched of a file in a bucket, unless its sha256 is
            checked; None for all of the file.

    Raises:
        StoreError: If it is no such file, or has another sha256.
    """
    file = stored_file(path)
    with file.open() as opened:
        if wanted is not None and sha256 is None and isinstance(file.folder, ObjectFolder):
            copy = file.folder.copy_of(opened)
            bring_header(copy)
            shard = _mapped(file, opened)
            bring_rows(copy, wanted)
            return _mapped(file, opened) if len(wanted.rows) else shard  # as a map may be of what was there before
        file.folder.bring(opened)
        if sha256 is not None and sha256_of(opened) != sha256:
            raise file.folder.fault(
                f"{file}: the sha256 is not the one in its index table; run `embedx verify` on its store"
            )
        return _mapped(file, opened)


def _mapped(file: StoreFile, opened: BinaryIO) -> AbstractContextManager[Any]:
    try:
        with file.path_of(opened) as place:
            shard = cast(AbstractContextManager[Any], safe_open(place, framework="pt"))
        _check_tensors(shard)
        read_header(shard)
    except StoreReplacedError:
        raise
    except (SafetensorError, OSError, ValueError, StoreError) as error:
        raise StoreError(f"{file}: not a readable shard ({error}); run `embedx verify` on its store") from error
    return shard


def read_header(shard: Any) -> ShardHeader:
    """Returns the header of an open shard."""
    try:
        header: ShardHeader = typed(parse_json((shard.metadata() or {})[HEADER_KEY]), ShardHeader)
    except (KeyError, ValueError) as error:
        raise StoreError("the shard's header is missing or not embedx's") from error
    if header.format != FORMAT:
        raise StoreError(f"the shard's format is {header.format}; this embedx reads format {FORMAT}")
    return header


def _check_tensors(shard: Any) -> None:
    """Raises a ValueError if the names, types and shapes are not those of a shard's tensors."""
    slices = {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118  (not a mapping)
    shapes = {name: one.get_shape() for name, one in slices.items()}
    if missing := {EMBEDDINGS, INDEX} - shapes.keys():
        raise ValueError(f"it has no {' and no '.join(sorted(missing))}")
    rows = (*shapes[INDEX], 0)[0]
    for name, shape in shapes.items():
        dtype = slices[name].get_dtype()
        whole_numbers = name in (INDEX, TARGETS)
        if (
            dtype not in _DTYPES.values()
            or (whole_numbers and (dtype, shape) != ("I64", [rows]))
            or (name == EMBEDDINGS and len(shape) < 2)
            or shape[:1] != [rows]
            or 0 in shape
        ):
            raise ValueError(f"{name!r} is {dtype} {shape}, as no shard of {rows} rows has it")
