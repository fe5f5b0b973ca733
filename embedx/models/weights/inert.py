"""Unpickling that runs no code: every class and function that a file names, but for tensors', becomes an inert one.

Training scripts pickle settings, whole models and callbacks beside the weights. None of their packages is imported. The
inert objects keep the state that pickle gives them, so that the tensors inside can be found.
"""

from __future__ import annotations

import io
import pickle
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

_PROGRAM = "constants.pkl"
"""The entry by which torch.load knows an archive of TorchScript."""


class Inert(dict[Any, Any]):
    """Takes the place of an object that is not loaded: a dict of its state and its entries."""

    dump_patches = False
    """The attribute that torch reads of the classes of modules in files from before version 1.6."""
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__()
        for argument in arguments:
            if isinstance(argument, Mapping):
                self.update(argument)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __call__(self, *arguments: object, **options: object) -> Inert:
        """Returns another inert object, as an unpickled function's result would be one."""
        return Inert()

    def __setstate__(self, state: object) -> None:
        """Keeps the attributes: pickle gives a dict, or a pair of a dict and the slots."""
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, Mapping):
                self.update(part)

    def append(self, *items: object) -> None:
        """Drops the items of a list or a set."""

    extend = add = append


class _Dtype(Inert):
    """A numpy dtype, by its code such as `f4`."""

    def __init__(self, code: str = "V", *arguments: object) -> None:
        super().__init__()
        self.code = code

    def __setstate__(self, state: Any) -> None:
        self.code = f"{state[1] if state[1] in '<>' else '='}{self.code}"


class Array(Inert):
    """A numpy array, of which `tensor` makes a tensor."""

    state: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def tensor(self) -> Tensor | None:
        """Returns the array's tensor; None if its values are no plain numbers."""
        if len(self.state) != 5 or not isinstance(self.state[2], _Dtype) or not isinstance(self.state[4], bytes):
            return None
        _, shape, dtype, is_fortran, data = self.state
        return array_tensor(np.ndarray(shape, np.dtype(dtype.code), data, order="F" if is_fortran else "C"))


def _of_buffer(data: Any, dtype: object, shape: object, order: object) -> Array:
    array = Array()
    array.state = (1, shape, dtype, order == "F", bytes(data))
    return array


def array_tensor(array: np.ndarray[Any, Any]) -> Tensor | None:
    """Copies an array into a tensor; None if torch has no such numbers."""
    if array.dtype.kind not in "fiub":
        return None
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


def _of_bytes(data: bytes) -> Any:
    """Returns the storage inside a tensor that was pickled by pickle itself, not by torch.save."""
    return load(io.BytesIO(data))


_KEPT: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "__builtin__.set": set,
    "_codecs.encode": lambda text, encoding="latin1": text.encode("latin1"),
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray._reconstruct": Array,
    "numpy._core.multiarray._reconstruct": Array,
    "numpy.core.numeric._frombuffer": _of_buffer,
    "numpy._core.numeric._frombuffer": _of_buffer,
    "torch.Size": torch.Size,
    "torch.storage._load_from_bytes": _of_bytes,
    "torch._tensor._rebuild_from_type_v2": lambda function, kind, arguments, state: function(*arguments),
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    **{
        f"torch._utils.{name}": getattr(torch._utils, name)  # the names that are in the files
        for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_qtensor")
    },
}
"""The functions and classes that build tensors and containers. Called with anything, they run nothing else."""


class InertUnpickler(pickle.Unpickler):
    """Unpickles tensors, containers and inert objects."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns a tensor's own functions and types, and `Inert` for everything else."""
        if (kept := _KEPT.get(f"{module}.{name}")) is not None:
            return kept
        constant = getattr(torch, name, None) if module == "torch" else None
        return constant if isinstance(constant, torch.dtype | torch.qscheme) else Inert


def load(file: IO[bytes]) -> Any:
    """Reads what torch.save or pickle.dump wrote, in any of their formats; TorchScript's archives too.

    Raises:
        Exception: If the file is damaged, or is none of these; torch and pickle raise errors of many classes.
    """
    begin = file.read(4)
    file.seek(0)
    if begin == b"PK\3\4":  # as torch.load knows an archive
        file = _without_program(file)
    elif not isinstance(first := _load(file), int):  # torch.save writes a number first
        return first
    file.seek(0)
    return torch.load(file, map_location="cpu", pickle_module=_PICKLE, weights_only=False)


def read_arrays(path: Path) -> dict[str, Tensor]:
    """Reads an `.npz` file's arrays of numbers."""
    with np.load(path, allow_pickle=False) as arrays:
        tensors = {name: array_tensor(arrays[name]) for name in arrays.files}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _without_program(file: IO[bytes]) -> IO[bytes]:
    """Returns an archive; TorchScript's without the entry by which torch.load knows it, and would run it."""
    file.seek(0)
    archive = torch._C.PyTorchFileReader(file)  # torch.load's own, so that both see the same entries
    if _PROGRAM not in (names := archive.get_all_records()):
        return file
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w") as copy:
        for name in names:
            if name != _PROGRAM:
                copy.writestr(f"archive/{name}", archive.get_record(name))
    return plain


def _load(file: IO[bytes], **options: Any) -> Any:
    return InertUnpickler(file, **{"encoding": "latin1", **options}).load()


_PICKLE = types.SimpleNamespace(__name__=__name__, Unpickler=InertUnpickler, load=_load)
"""The module that torch.load unpickles with."""
