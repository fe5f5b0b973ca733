"""Decodes inputs that already are features, a vector [D] or tokens [T, D] each, from `.npy` or `.safetensors`."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from embedx.data.decoding.batch_rows import RunDecoder
from embedx.data.plan import Plan, SplitPlan
from embedx.data.reading.files import RejectedInputError
from embedx.data.sources.base import Run
from embedx.data.sources.feature_files import tensor_of_features
from embedx.data.sources.kinds import SUFFIXES
from embedx.errors import ConfigError
from embedx.values import MAX_BYTES

_NPY_MAGIC = b"\x93NUMPY"
_NPY_START = 10
"""The bytes before the header's text in version 1.0 of the format; the last two are the text's length."""
_TRIED = 1000
"""The number of inputs per split that are tried for the shape of the features."""


class FeatureDecoder(RunDecoder):
    """Copies features of one shape, (D,) or (T, D), into rows of a float32 batch."""

    entry = "features"

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def empty(self, batch_size: int) -> Tensor:
        """Returns an uninitialised batch [B, D] or [B, T, D] float32."""
        return torch.empty(batch_size, *self.shape)

    def decode_into(self, row: Tensor, data: bytes) -> None:
        """Reads an input's bytes into its row; raises a RejectedInputError if they are not features of this shape."""
        row.copy_(_of_shape(read_features(data), row.shape))

    def decode_run(self, rows: Tensor, run: Run) -> None:
        """Copies the inputs' values into their rows; raises a RejectedInputError if they are not of this shape."""
        _of_shape(read_features(run.head + run.values[0].tobytes()), rows.shape[1:])  # all have one type and shape
        with np.errstate(all="ignore"):  # numpy and not torch, which warns of a file's memory, as it can't be written
            np.copyto(rows.numpy(), run.values, casting="unsafe")


def _of_shape(features: Tensor, shape: torch.Size) -> Tensor:
    if features.shape != shape:
        raise RejectedInputError(f"features of shape {list(features.shape)}, not {list(shape)}")
    return features


def read_features(data: bytes) -> Tensor:
    """Returns the array of an `.npy` file or the tensor of a `.safetensors` file, given the file's bytes.

    Raises:
        RejectedInputError: If the file holds no features, or several tensors and none named `embeddings`.
    """
    try:
        if data.startswith(_NPY_MAGIC):
            features = torch.from_numpy(_array(data))
        else:
            tensors = safetensors.torch.load(data)
            features = tensors[tensor_of_features(tensors)]
    except (SafetensorError, ValueError, TypeError, EOFError, OSError) as error:
        raise RejectedInputError(f"no features can be read from it: {error}") from error
    if features.ndim not in (1, 2) or features.is_complex():
        raise RejectedInputError(f"not a vector or tokens: {features.dtype}, shape {list(features.shape)}")
    return features


def _array(data: bytes) -> np.ndarray[Any, Any]:
    """Returns the array of an `.npy` file; its header, which files of one shape share, is parsed once."""
    end = _NPY_START + int.from_bytes(data[_NPY_START - 2 : _NPY_START], "little")
    layout = _npy_layout(data[:end])
    if layout is not None and len(data) - end == layout.itemsize:
        array: np.ndarray[Any, Any] = np.frombuffer(data, layout, offset=end)[0].copy()
    else:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    return array


@functools.lru_cache(maxsize=16)
def _npy_layout(header: bytes) -> np.dtype[Any] | None:
    """Returns the type and shape that a header of version 1.0 tells; None for another one, or a damaged one."""
    if not header.startswith(_NPY_MAGIC + b"\1\0"):
        return None
    try:
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(header[len(_NPY_MAGIC) + 2 :]))
    except (ValueError, TypeError, EOFError):
        return None
    return None if is_fortran or dtype.hasobject or not shape else np.dtype((dtype, shape))


def features_shape(plan: Plan) -> tuple[int, ...]:
    """Returns the shape of the first input that can be read, which is the same in all splits.

    Raises:
        ConfigError: If none of a split's first inputs can be read, or the splits differ.
    """
    shapes = {name: _first_shape(split) for name, split in plan.splits.items()}
    if len(set(shapes.values())) > 1:
        told = ", ".join(f"{list(shape)} in split {name!r}" for name, shape in shapes.items())
        raise ConfigError(f"the splits' features differ in shape: {told}; extract them into separate stores")
    return next(iter(shapes.values()))


def _first_shape(split: SplitPlan) -> tuple[int, ...]:
    reason = "there are none"
    for sample in split.table.slice(0, _TRIED).select(["path", "offset", "size"]).to_pylist():
        try:
            return tuple(read_features(split.reader.read(**sample, most=MAX_BYTES)).shape)
        except RejectedInputError as error:
            reason = str(error)
    raise ConfigError(
        f"none of the first inputs of split {split.name!r} is a feature file ({reason}); --backbone none takes "
        f"{' and '.join(sorted(SUFFIXES['features']))} files, for images name a backbone"
    )
