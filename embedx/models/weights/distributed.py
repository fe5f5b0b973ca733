"""Folders by torch.distributed.checkpoint, as FSDP training writes them: `.metadata` beside `.distcp` files.

torch's own loader reads the tensors, in one process. Only its reading of `.metadata`, which unpickles anything, is
replaced.
"""

from __future__ import annotations

import dataclasses
import enum
import pickle
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load

from embedx.models.weights.inert import InertUnpickler

_METADATA = ".metadata"


def read(folder: Path) -> dict[str, Tensor]:
    """Reads all tensors of a folder, by their dotted names; other values are left out.

    Raises:
        Exception: If the folder is damaged; torch and pickle raise errors of many classes.
    """
    reader = _Reader(folder)
    entries = reader.read_metadata().state_dict_metadata.items()
    tensors: dict[str, Any] = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries
        if isinstance(entry, metadata.TensorStorageMetadata)
    }
    try:
        load(tensors, storage_reader=reader, no_dist=True)
    except CheckpointException as error:  # no Exception
        reason, _ = next(iter(error.failures.values()))
        raise RuntimeError(f"{type(reason).__name__}: {reason}") from reason
    return tensors


class _Reader(filesystem.FileSystemReader):
    """torch's reader, with a restricted reading of the metadata."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> metadata.Metadata:
        """Reads the metadata, and checks that it names files of the folder alone."""
        with (Path(self.path) / _METADATA).open("rb") as file:
            found = _MetadataUnpickler(file).load()
        if not isinstance(found, metadata.Metadata):
            raise pickle.UnpicklingError(f"{_METADATA} holds no metadata")
        for info in (found.storage_data or {}).values():
            name = PurePath(info.relative_path)
            if name.is_absolute() or ".." in name.parts:
                raise pickle.UnpicklingError(f"it names the file {str(name)!r}, which is not in its own folder")
        found.storage_meta = found.storage_meta or metadata.StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found


class _MetadataUnpickler(InertUnpickler):
    """Unpickles the records that describe tensors and where they are stored; all else is inert."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns torch's own records, which are dataclasses and enums, and its layouts."""
        kind = next((getattr(known, name, None) for known in (metadata, filesystem) if known.__name__ == module), None)
        if isinstance(kind, type) and (dataclasses.is_dataclass(kind) or issubclass(kind, enum.Enum)):
            return kind
        if (module, name) == ("torch.serialization", "_get_layout"):
            return lambda layout: getattr(torch, str(layout).removeprefix("torch."))
        return super().find_class(module, name)
