"""Reading the tensors of a checkpoint without running code that the file may carry."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from embedx.errors import CheckpointError
from embedx.models.weights.matching import listed

_UNREADABLE = (SafetensorError, OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError)
"""The errors with which the readers refuse a damaged file, or one of another format."""
_INERT = (
    "argparse.Namespace",
    *(f"pathlib.{module}{flavour}Path" for module in ("", "_local.") for flavour in ("Posix", "Windows")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy.dtype",
    "numpy.ndarray",
)
"""The types that training scripts store beside the weights: settings, paths, numbers. `_Inert` takes their place."""
_CONVERT = (
    'python -c "import sys, torch, safetensors.torch; '
    "flat = lambda x, p='': {n: t for k, v in x.items() for n, t in flat(v, f'{p}{k}.').items()} if isinstance(x, dict)"
    " else flat(x.state_dict(), p) if hasattr(x, 'state_dict')"
    " else {p[:-1]: x.detach().clone().contiguous()} if torch.is_tensor(x) else {}; "
    "safetensors.torch.save_file(flat(torch.load(sys.argv[1], 'cpu', weights_only=False)), sys.argv[2])\""
)
"""A command that saves all tensors of a file that needs pickle, or is TorchScript, under their flat names."""


class _Inert:
    """Takes the place of an object that is not loaded, whatever the arguments and the state that pickle gives it."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads all tensors of a checkpoint, and runs none of the code that it may carry.

    Args:
        path: A `.safetensors` file, a file by torch.save, or the `.index.json` of several such files.

    Returns:
        The tensors on the CPU by name. The keys that a tensor is nested under are part of its name, joined by dots.

    Raises:
        CheckpointError: If the file can't be read, needs pickle to run code, or holds no tensors.
    """
    if not is_index(path):
        return _read_file(path)
    shards = shard_files(path)
    tensors = {file: _read_file(file) for file in set(shards.values())}
    lost = [name for name, file in shards.items() if name not in tensors[file]]
    if lost:
        raise CheckpointError(f"{path}: its shards lack {listed(lost)}; get index and shards from the same place")
    return {name: tensors[file][name] for name, file in shards.items()}


def is_index(path: Path) -> bool:
    """Tells whether a file is the index of a sharded checkpoint, by its name."""
    return path.name.endswith(".index.json")


def shard_files(index: Path) -> dict[str, Path]:
    """Returns the file of each tensor, read from the index of a sharded checkpoint in Hugging Face's layout.

    Raises:
        CheckpointError: If the file is no such index, or a shard is missing or outside the index's folder.
    """
    try:
        shards = {str(name): str(file) for name, file in json.loads(index.read_bytes())["weight_map"].items()}
    except _UNREADABLE as error:
        raise CheckpointError(f"{index}: not the index of a sharded checkpoint ({error!r})") from error
    if not shards:
        raise CheckpointError(f"{index}: the index of a sharded checkpoint, but names no shard")
    for file in shards.values():
        if PurePath(file).is_absolute() or ".." in PurePath(file).parts:
            raise CheckpointError(f"{index}: names the shard {file!r}, which is not in the index's own folder")
        if not os.path.isfile(index.parent / file):
            raise CheckpointError(f"{index}: its shard {file!r} is missing; put all its shards beside it")
    return {name: index.parent / file for name, file in shards.items()}


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        content = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
        tensors = dict(_flatten(content)) if isinstance(content, Mapping) else {}
    except (pickle.UnpicklingError, *_UNREADABLE) as error:
        raise CheckpointError(f"{path}: {_refusal(path, error)}") from error
    if not tensors:
        found = f"the keys {listed(content)}" if isinstance(content, Mapping) else type(content)
        raise CheckpointError(f"{path}: not a state dict of tensors; it holds {found}; save model.state_dict()")
    return tensors


def _unpickle(path: Path) -> Any:
    with torch.serialization.safe_globals([(_Inert, name) for name in _INERT]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns before it refuses TorchScript and later pickles
        return torch.load(path, map_location="cpu", weights_only=True)


def _flatten(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, Tensor) and not value.is_meta:  # a tensor on the meta device has no values
            yield f"{prefix}{key}", value


def _refusal(path: Path, error: Exception) -> str:
    """Words why a file isn't loaded, from the reader's error."""
    wanted = re.search(r"GLOBAL (\S+)|TorchScript", str(error))
    if not wanted and not isinstance(error, pickle.UnpicklingError):
        return f"not a readable checkpoint ({error})"
    reason = f" (it asks for {wanted[1] or 'TorchScript'})" if wanted else ", or it is damaged"
    return (
        f"loading it would run code that it carries{reason}; where you trust it, save the weights alone:\n"
        f"{_CONVERT} {shlex.quote(str(path))} weights.safetensors"
    )
