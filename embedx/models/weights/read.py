"""Weights: where they come from, their hash, and reading them without running code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import re
import shlex
import socket
import sys
import urllib.error
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlparse

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torchvision import models
from torchvision.models import WeightsEnum

from embedx import sample
from embedx.config import ExtractConfig
from embedx.errors import CheckpointError, ConfigError, unknown
from embedx.models.weights.matching import listed

_DOWNLOAD_TIMEOUT = 10.0
"""Seconds without an answer after which a download is given up."""
_UNREADABLE = (SafetensorError, OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError)
"""What the readers raise on files that are damaged or something else."""
_INERT = (
    "argparse.Namespace",
    *(f"pathlib.{module}{flavour}Path" for module in ("", "_local.") for flavour in ("Posix", "Windows")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy.dtype",
    "numpy.ndarray",
)
"""What training scripts store beside the weights: settings, paths, numbers. None of it is loaded."""
_CONVERT = (
    'python -c "import sys, torch, safetensors.torch; '
    "flat = lambda x, p='': {n: t for k, v in x.items() for n, t in flat(v, f'{p}{k}.').items()} if isinstance(x, dict)"
    " else flat(x.state_dict(), p) if hasattr(x, 'state_dict')"
    " else {p[:-1]: x.detach().clone().contiguous()} if torch.is_tensor(x) else {}; "
    "safetensors.torch.save_file(flat(torch.load(sys.argv[1], 'cpu', weights_only=False)), sys.argv[2])\""
)
"""A command that saves all tensors of a file that needs pickle, or is TorchScript, under their flat names."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """A backbone's weights: what the recipe says of them, and the file they are in."""

    name: str
    """A torchvision weights' full name, `checkpoint`, `sample`, `random`, or `none` without a backbone."""
    path: Path | None = None
    """None for random weights, and for a file that has not been downloaded."""
    sha256: str | None = None
    """Of an index: that of the index's and its shards' sha256s."""
    seed: int = 0
    key: str | None = None
    """The sub-tree of the checkpoint that holds the weights, where one was chosen."""

    def to_json(self) -> dict[str, str | int]:
        """The recipe's entry."""
        if self.name == "random":
            return {"name": self.name, "seed": self.seed}
        if self.name == "none":
            return {"name": self.name}
        key = {} if self.key is None else {"key": self.key}
        return {"name": self.name, "sha256": self.sha256 or "not in the cache", **key}


class _Inert:
    """Takes the place of what is not loaded, whatever pickle would make it from."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def given_weights(config: ExtractConfig) -> Weights | None:
    """The weights that are the same for every kind of backbone: a checkpoint, or random ones; None for its own.

    Raises:
        CheckpointError: If the checkpoint can't be read.
    """
    if config.checkpoint is not None:
        return dataclasses.replace(of_file("checkpoint", config.checkpoint), key=config.checkpoint_key)
    return Weights("random", seed=config.seed) if config.weights == "random" else None


def find_weights(config: ExtractConfig, *, download: bool) -> tuple[Weights, WeightsEnum]:
    """Finds the weights' file, and the torchvision weights whose preprocessing goes with it.

    Raises:
        ConfigError: If the weights' name is unknown, or they can't be had.
    """
    enum = models.get_model_weights(config.backbone)
    if (given := given_weights(config)) is not None:
        return given, enum["DEFAULT"]
    if config.weights == "sample":
        if config.backbone != sample.BACKBONE:
            raise ConfigError(f"--weights sample are those of {sample.BACKBONE}; give --backbone {sample.BACKBONE}")
        return of_file("sample", sample.CHECKPOINT), enum["DEFAULT"]
    name = config.weights.removeprefix(f"{enum.__name__}.")
    if name not in enum.__members__:
        names = [*enum.__members__, "random", "sample"]
        raise ConfigError(unknown("--weights", config.weights, names, hint=f"(of {config.backbone})"))
    member = enum[name]
    path = _cached(member, download=download)
    full_name = f"{enum.__name__}.{member.name}"
    return (of_file(full_name, path) if path.is_file() else Weights(full_name)), member


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads all tensors of a checkpoint, running none of the code that it may carry.

    Args:
        path: A `.safetensors` file, what torch.save wrote, or the `.index.json` of several such files.

    Returns:
        Tensors on the CPU by name; the keys that they are nested under are parts of it, joined by dots.

    Raises:
        CheckpointError: If the file can't be read, needs pickle to run code, or holds no tensors.
    """
    if not _is_index(path):
        return _read_file(path)
    shards = _shards(path)
    tensors = {file: _read_file(file) for file in set(shards.values())}
    lost = [name for name, file in shards.items() if name not in tensors[file]]
    if lost:
        raise CheckpointError(f"{path}: its shards lack {listed(lost)}; get index and shards from the same place")
    return {name: tensors[file][name] for name, file in shards.items()}


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
        warnings.simplefilter("ignore", UserWarning)  # before it refuses TorchScript and pickle's later protocols
        return torch.load(path, map_location="cpu", weights_only=True)


def _flatten(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, Tensor) and not value.is_meta:  # a tensor on the meta device has no values
            yield f"{prefix}{key}", value


def _refusal(path: Path, error: Exception) -> str:
    """Words why a file isn't loaded, from what the readers say."""
    wanted = re.search(r"GLOBAL (\S+)|TorchScript", str(error))
    if not wanted and not isinstance(error, pickle.UnpicklingError):
        return f"not a readable checkpoint ({error})"
    reason = f" (it asks for {wanted[1] or 'TorchScript'})" if wanted else ", or it is damaged"
    return (
        f"loading it would run code that it carries{reason}; where you trust it, save the weights alone:\n"
        f"{_CONVERT} {shlex.quote(str(path))} weights.safetensors"
    )


def _is_index(path: Path) -> bool:
    return path.name.endswith(".index.json")


def _shards(index: Path) -> dict[str, Path]:
    """The file of each tensor, as the index of a sharded checkpoint in Hugging Face's layout tells them.

    Raises:
        CheckpointError: If it is no such index, or a shard is not there or not in the index's folder.
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
            raise CheckpointError(f"{index}: its shard {file!r} is not there; put all its shards beside it")
    return {name: index.parent / file for name, file in shards.items()}


def _cached(member: WeightsEnum, *, download: bool) -> Path:
    """The weights' place in torch's cache, filled by a download if it is empty and that is wanted."""
    name = Path(urlparse(member.url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file() or not download:
        return path
    hash_prefix = re.search(r"-([0-9a-f]{8,})\.", name)  # some quantised weights' names have none
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            member.url, str(path), hash_prefix and hash_prefix[1], progress=sys.stderr.isatty()
        )
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{type(member).__name__}.{member.name} is not in torch's cache and can't be downloaded ({error}).\n"
            f"Put the file at {path},\n"
            "or load weights of your own with --checkpoint FILE, or try things out with --weights random"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return path


def of_file(name: str, path: Path) -> Weights:
    """The weights that are in a file.

    Raises:
        CheckpointError: If it can't be read.
    """
    try:
        return Weights(name, path, _sha256(path))
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror})") from error


def _sha256(path: Path) -> str:
    """A file's sha256; of an index, that of the lines of sha256s of the index and of its shards, sorted by name."""
    if _is_index(path):
        files = [path, *sorted(set(_shards(path).values()))]
        return hashlib.sha256("".join(f"{_file_sha256(file)}\n" for file in files).encode()).hexdigest()
    return _file_sha256(path)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
