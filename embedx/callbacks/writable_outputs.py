"""Outputs as they are written: checked, and in the stored type.

Shapes: n rows of a batch, D embedding dimension, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from embedx.errors import ConfigError
from embedx.names import EMBEDDINGS, INDEX, TARGETS


def checked_outputs(given: Any, count: int) -> Mapping[str, Tensor]:
    """Returns the outputs by name, which are fit to be stored: `embeddings` [n, D] and one entry per extra layer."""
    outputs: Mapping[str, Tensor] = given if isinstance(given, Mapping) else {EMBEDDINGS: given}
    if EMBEDDINGS not in outputs:
        raise ConfigError(f"the outputs have no {EMBEDDINGS!r}, but {', '.join(outputs)}; give a test_connector")
    if reserved := sorted({INDEX, TARGETS}.intersection(outputs)):
        raise ConfigError(f"an output can't be named {', '.join(reserved)}: shards have tensors of that name")
    for name, tensor in outputs.items():
        if len(tensor) != count:
            raise ConfigError(f"the output {name!r} has {len(tensor)} rows for {count} inputs")
        if 0 in tensor.shape[1:]:
            raise ConfigError(f"the output {name!r} has shape {list(tensor.shape)}: there is nothing in its rows")
    if outputs[EMBEDDINGS].ndim < 2:
        raise ConfigError(f"the embeddings have shape {list(outputs[EMBEDDINGS].shape)}; give [n, D]")
    return outputs


def in_stored_type(outputs: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Returns the outputs in the stored type, still on their device.

    Tensors of integers keep their type, as a float might not hold their values.
    """
    return {
        name: tensor.detach().to(dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype)
        for name, tensor in outputs.items()
    }
