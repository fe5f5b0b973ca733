"""Reading the tensors of a checkpoint, whatever its format, without running code that it may carry."""

from __future__ import annotations

import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from embedx.errors import CheckpointError
from embedx.models.weights import inert
from embedx.models.weights.misfit import listed

UNREADABLE = (
    *(pickle.UnpicklingError, SafetensorError, zipfile.BadZipFile, OSError, RuntimeError, ValueError, EOFError),
    *(LookupError, TypeError, AttributeError, AssertionError, ImportError, ArithmeticError, MemoryError),
)
"""The errors with which the readers refuse a damaged file, or one of another format."""
_WHOLE = (
    *("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin"),
    "diffusion_pytorch_model.safetensors",
)
"""The files that hold a model in a folder of Hugging Face's layout; the first that is there is taken."""
_METADATA = ".metadata"
"""The file by which a folder of torch.distributed.checkpoint is known."""
_OTHER_FORMATS = (
    (b"", "is empty; copy or download it again"),
    (b"version https://git-lfs", "is a Git LFS pointer, and the weights are not here; fetch them with `git lfs pull`"),
    (b"<!doctype html", "is a web page; download the file itself, from its direct link"),
    (b"<html", "is a web page; download the file itself, from its direct link"),
    (b"<?xml", "is an XML text, often a server's refusal; download the file again"),
    (b"\x89hdf", "is an HDF5 file, as Keras writes; get the model's weights for PyTorch"),
    (b"\x1f\x8b", "is compressed by gzip; unpack it with gunzip, or tar if it is a .tar.gz"),
    (b"bzh", "is compressed by bzip2; unpack it first"),
    (b"\xfd7zxz", "is compressed by xz; unpack it first"),
    (b"gguf", "is a GGUF file, which holds no image model of PyTorch; get its weights as safetensors"),
)
"""The beginnings, in lower case, of files that are taken for checkpoints, and the next step."""
_MOST_TENSORS = 1_000_000
"""The number of tensors above which a checkpoint is refused, as a small file can nest them without end."""
_OF_MODULES = ("_parameters", "_buffers", "_modules")
"""The dicts of a pickled nn.Module, which are no part of its tensors' names."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads all tensors of a checkpoint, and runs none of the code that it may carry.

    Args:
        path: A file by safetensors, torch.save, torch.jit.save, pickle or numpy; an `.index.json` of several such
            files; or a folder by torch.distributed.checkpoint. Its content decides, not its suffix.

    Returns:
        The tensors on the CPU by name. The keys that a tensor is nested under are part of its name, joined by dots.

    Raises:
        CheckpointError: If the checkpoint can't be read, or holds no tensors.
    """
    if _is_distributed(path):
        from embedx.models.weights import distributed  # a second, for torch's own imports

        return _named(path, _attempt(path, distributed.read))
    if not is_index(path):
        return _read_file(path)
    shards = shard_files(path)
    tensors = {file: _read_file(file) for file in set(shards.values())}
    lost = [name for name, file in shards.items() if name not in tensors[file]]
    if lost:
        raise CheckpointError(f"{path}: its shards lack {listed(lost)}; get index and shards from the same place")
    return {name: tensors[file][name] for name, file in shards.items()}


def locate(path: Path) -> Path:
    """Returns the path that stands for a whole checkpoint: of a folder the file in it, of a part its folder.

    Raises:
        CheckpointError: If a folder holds no checkpoint that is known by its name.
    """
    if path.suffix == ".distcp" or path.name == _METADATA:
        path = path.parent
    if not path.is_dir() or _is_distributed(path):
        return path
    found = next((path / name for name in _WHOLE if (path / name).is_file()), None)
    if found is None:
        there = listed(sorted(entry.name for entry in path.iterdir())) or "nothing"
        raise CheckpointError(
            f"{path}: a folder that holds {there}, and neither {_WHOLE[1]} nor {_METADATA} of "
            "torch.distributed.checkpoint; give the checkpoint's file"
        )
    return found


def checkpoint_files(path: Path) -> list[Path]:
    """Lists the files that hold a checkpoint, in a fixed order.

    Raises:
        CheckpointError: If it is an index, and a shard is missing.
    """
    if _is_distributed(path):
        return [path / _METADATA, *sorted(path.glob("*.distcp"))]
    return [path, *sorted(set(shard_files(path).values()))] if is_index(path) else [path]


def _is_distributed(path: Path) -> bool:
    return (path / _METADATA).is_file()


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
    except UNREADABLE as error:
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
    content = _attempt(path, _read_content)
    return _named(path, content)


def _attempt(path: Path, read: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, on formats that it no longer writes
            return read(path)
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason})") from error


def _named(path: Path, content: Any) -> dict[str, Tensor]:
    """Returns the tensors inside what was read, by their dotted names."""
    tensors = _attempt(path, lambda _: _tensors(content, {})) if isinstance(content, Mapping) else {}
    if not tensors:
        is_plain = isinstance(content, Mapping) and not isinstance(content, inert.Inert)
        found = f"the keys {listed(content)}" if is_plain else type(content)
        raise CheckpointError(f"{path}: not a state dict of tensors; it holds {found}; save model.state_dict()")
    return tensors


def _read_content(path: Path) -> Any:
    """Reads one file in the format that its first bytes show."""
    with path.open("rb") as file:
        begin = file.read(512)
        file.seek(0)
        for magic, words in _OTHER_FORMATS:
            if begin.lower().lstrip().startswith(magic) if magic else not begin:
                raise CheckpointError(f"{path}: {words}")
        if begin[8:9] == b"{" or path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        if begin.startswith(b"PK") and _is_of_arrays(path):
            return inert.read_arrays(path)
        return inert.load(file)


def _is_of_arrays(path: Path) -> bool:
    """Tells whether an archive holds numpy's arrays.

    Raises:
        CheckpointError: If it is a program, or no archive of torch's or numpy's.
    """
    with zipfile.ZipFile(path) as archive:
        names = {PurePath(name).name for name in archive.namelist()}
    if names & {"archive_format", "serialized_exported_program.json"}:
        raise CheckpointError(f"{path}: is an exported program, no checkpoint; give it as --backbone {path}")
    is_of_arrays = bool(names) and all(name.endswith(".npy") for name in names)
    if not is_of_arrays and "data.pkl" not in names:
        raise CheckpointError(f"{path}: is a zip archive of {listed(sorted(names), 3)}; unpack it, and give the file")
    return is_of_arrays


def _tensors(content: Mapping[Any, Any], known: dict[int, dict[str, Tensor]]) -> dict[str, Tensor]:
    """Finds the tensors below a mapping; `known` has those of the mappings that were looked into, by identity."""
    if id(content) in known:
        return known[id(content)]
    known[id(content)] = {}  # what holds itself is found once
    found: dict[str, Tensor] = {}
    for key, value in _parts(content):
        if isinstance(value, inert.Array):
            value = value.tensor()
        if isinstance(value, Tensor) and not value.is_meta:  # a tensor on the meta device has no values
            found[key] = value
        elif isinstance(value, Mapping):
            found.update({f"{key}.{name}": tensor for name, tensor in _tensors(value, known).items()})
        if len(found) > _MOST_TENSORS:
            raise ValueError(f"it nests more than {_MOST_TENSORS:,} tensors")
    known[id(content)] = found
    return found


def _parts(content: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yields a mapping's entries; of a pickled nn.Module those that its state dict would have."""
    if not (isinstance(content, inert.Inert) and _OF_MODULES[0] in content):
        yield from ((str(key), value) for key, value in content.items() if isinstance(key, str | int))
        return
    unsaved: Collection[Any] = content.get("_non_persistent_buffers_set") or ()
    for name in _OF_MODULES:
        part = content.get(name)
        for key, value in part.items() if isinstance(part, Mapping) else ():
            if name != "_buffers" or key not in unsaved:
                yield str(key), value
