"""Folders by torch.distributed.checkpoint; torch's own `load` is the reference."""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from embedx.errors import CheckpointError
from embedx.models.weights.find import weights_of_file
from embedx.models.weights.read import locate, read_state_dict


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3, 2, 2)).sum().backward()
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "args": {"lr": 0.1}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(content, checkpoint_id=tmp_path / "last", no_dist=True)
    return tmp_path / "last"


def test_a_folder_is_read_as_torch_reads_it(folder: Path) -> None:
    read = read_state_dict(folder)
    wanted = {name: torch.full_like(tensor, 7) for name, tensor in read.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(wanted, checkpoint_id=folder, no_dist=True)
    assert {"model.0.weight", "model.1.running_mean", "optimizer.state.0.weight.exp_avg"} & read.keys()
    assert len(read) > 10 and all(torch.equal(read[name], tensor) for name, tensor in wanted.items())


def test_a_folder_s_files_stand_for_it_and_all_are_hashed(folder: Path) -> None:
    [part] = folder.glob("*.distcp")
    assert locate(folder) == locate(part) == locate(folder / ".metadata") == folder
    before = weights_of_file("checkpoint", folder).sha256
    part.write_bytes(part.read_bytes() + b"\0")
    assert weights_of_file("checkpoint", folder).sha256 != before


class Call:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_calls_in_the_metadata_are_not_made(folder: Path, tmp_path: Path) -> None:
    file = folder / ".metadata"
    metadata: Metadata = pickle.loads(file.read_bytes())
    metadata.planner_data = Call(tmp_path / "made")
    file.write_bytes(pickle.dumps(metadata))
    assert "model.0.weight" in read_state_dict(folder)
    file.write_bytes(pickle.dumps(Call(tmp_path / "made")))
    with pytest.raises(CheckpointError, match=r"not a readable checkpoint \(\.metadata holds no metadata\)"):
        read_state_dict(folder)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("place", ["../secret.distcp", "/etc/passwd"])
def test_no_file_outside_the_folder_is_read(folder: Path, place: str) -> None:
    file = folder / ".metadata"
    metadata: Metadata = pickle.loads(file.read_bytes())
    for info in (metadata.storage_data or {}).values():
        info.relative_path = place
    file.write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="which is not in its own folder"):
        read_state_dict(folder)


def test_a_damaged_folder_is_refused(folder: Path) -> None:
    [part] = folder.glob("*.distcp")
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        read_state_dict(folder)
    part.unlink()
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        read_state_dict(folder)
    metadata: Metadata = pickle.loads((folder / ".metadata").read_bytes())
    entry = next(iter(metadata.state_dict_metadata.values()))
    assert isinstance(entry, TensorStorageMetadata)
    entry.size = torch.Size([2**50, 2**10])
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        read_state_dict(folder)
