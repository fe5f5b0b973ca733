"""Checkpoint files: nested dicts and lists of tensors and plain values.

A checkpoint is one file, so that it is replaced in one rename: tensors as safetensors, and all else as JSON in the
file's header, under the key `embedx`, as in a shard.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from embedx.errors import CheckpointError
from embedx.store.format.atomic import write_atomic
from embedx.store.format.shards import HEADER_KEY


def write_state(path: Path, contents: Mapping[str, Any]) -> None:
    """Writes nested dicts and lists of tensors and plain JSON values, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    header = json.dumps(_encode(contents, "", tensors))
    write_atomic(path, save(tensors, metadata={HEADER_KEY: header}))


def read_state(path: Path) -> dict[str, Any]:
    """Reads a file of `write_state`; tuples come back as lists.

    Raises:
        CheckpointError: If the file can't be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (not a mapping)
            header = json.loads((file.metadata() or {})[HEADER_KEY])
        return cast(dict[str, Any], _decode(header, tensors))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({error}); remove it and begin anew") from error


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Makes plain JSON; tensors become their names, and dicts lists of pairs, as their keys may be numbers."""
    if isinstance(value, Tensor):
        name = name.removeprefix("/")
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[key, _encode(item, f"{name}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_encode(item, f"{name}/{number}", tensors) for number, item in enumerate(value)]
    return value


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _decode(item, tensors) for key, item in value["dict"]}
    return value
