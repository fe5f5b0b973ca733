"""Weights: where they come from, reading them without running code, and matching them tensor by tensor."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import re
import socket
import sys
import urllib.error
from collections.abc import Collection, Mapping
from pathlib import Path
from urllib.parse import urlparse

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torchvision import models
from torchvision.models import WeightsEnum

from embedx import sample
from embedx.config import ExtractConfig, Preprocessing
from embedx.errors import CheckpointError, ConfigError, unknown

_DOWNLOAD_TIMEOUT = 10.0
"""Seconds without an answer after which a download is given up."""
_LISTED = 8
"""Tensor names that an error lists before it counts."""
_UNREADABLE = (SafetensorError, OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError)
"""What the readers raise on files that are damaged or something else."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """A backbone's weights: what the recipe says of them, and the file they are in."""

    name: str
    """A torchvision weights' full name, `checkpoint`, `sample`, `random`, or `none` without a backbone."""
    path: Path | None = None
    """None for random weights, and for a file that has not been downloaded."""
    sha256: str | None = None
    seed: int = 0

    def to_json(self) -> dict[str, str | int]:
        """The recipe's entry."""
        if self.name == "random":
            return {"name": self.name, "seed": self.seed}
        if self.name == "none":
            return {"name": self.name}
        return {"name": self.name, "sha256": self.sha256 or "not in the cache"}


def find_weights(config: ExtractConfig, *, download: bool) -> tuple[Weights, Preprocessing]:
    """Finds the weights' file, and the preprocessing of the preset that goes with it.

    Raises:
        ConfigError: If the weights' name is unknown, or they can't be had.
    """
    enum = models.get_model_weights(config.backbone)
    if config.checkpoint is not None:
        return of_file("checkpoint", config.checkpoint), _preset(enum["DEFAULT"])
    if config.weights == "random":
        return Weights("random", seed=config.seed), _preset(enum["DEFAULT"])
    if config.weights == "sample":
        if config.backbone != sample.BACKBONE:
            raise ConfigError(f"--weights sample are those of {sample.BACKBONE}; give --backbone {sample.BACKBONE}")
        return of_file("sample", sample.CHECKPOINT), _preset(enum["DEFAULT"])
    name = config.weights.removeprefix(f"{enum.__name__}.")
    if name not in enum.__members__:
        names = [*enum.__members__, "random", "sample"]
        raise ConfigError(unknown("--weights", config.weights, names, hint=f"(of {config.backbone})"))
    member = enum[name]
    path = _cached(member, download=download)
    full_name = f"{enum.__name__}.{member.name}"
    return (of_file(full_name, path) if path.is_file() else Weights(full_name)), _preset(member)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads a `.safetensors` file, or what torch.save wrote, in the latter case with `weights_only`.

    Raises:
        CheckpointError: If the file can't be read, needs pickle to run code, or is no plain state dict.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: loading it would run code that it carries, or it is damaged; save the weights alone, with "
            f"safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        ) from error
    except _UNREADABLE as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({error})") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        found = f"the keys {', '.join(map(str, list(state)[:_LISTED]))}" if isinstance(state, Mapping) else type(state)
        raise CheckpointError(f"{path}: not a state dict of tensors; it holds {found}; save model.state_dict()")
    return dict(state)


def fill(model: nn.Module, state: Mapping[str, Tensor], weights: Weights, *, ignored: Collection[str]) -> None:
    """Sets every tensor of a backbone from a state dict.

    Args:
        model: The backbone; its parameters may be on the meta device.
        state: Tensors by name.
        weights: Where they come from, for messages.
        ignored: Names of sub-modules, such as the classifier, whose tensors may be in `state` and are not used.

    Raises:
        CheckpointError: If a tensor of the backbone is missing or of another shape, or another one is there;
            the model is not to be used then.
    """
    own = {_current_name(model, name): tensor for name, tensor in state.items()}
    own = {name: tensor for name, tensor in own.items() if not name.startswith(tuple(f"{part}." for part in ignored))}
    wanted = model.state_dict()
    mismatched = [
        f"{name} {list(own[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in own and own[name].shape != tensor.shape
    ]
    missing = [
        # Checkpoints older than this counter lack it; nothing reads it in evaluation.
        name
        for name in wanted.keys() - own.keys()
        if not name.endswith("num_batches_tracked")
    ]
    unexpected = own.keys() - wanted.keys()
    faults = [
        f"  {len(names)} {what}: {', '.join(sorted(names)[:_LISTED])}{' …' if len(names) > _LISTED else ''}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", mismatched),
        )
        if names
    ]
    if faults:
        raise CheckpointError(
            f"{weights.path} does not fit the backbone: of its {len(wanted)} tensors\n" + "\n".join(faults)
        )
    cast = {name: tensor.to(wanted[name].dtype) for name, tensor in own.items()}
    model.load_state_dict(cast, strict=False, assign=True)


def _current_name(model: nn.Module, name: str) -> str:
    """A tensor's name as the model has it: torchvision's DenseNet weights carry names of before 2018.

    `norm.1.weight` in a dense layer is now `norm1.weight`; torchvision renames likewise when it loads them.
    """
    if isinstance(model, models.DenseNet):
        return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)
    return name


def _cached(member: WeightsEnum, *, download: bool) -> Path:
    """The weights' place in torch's cache, filled by a download if it is empty and that is wanted."""
    name = Path(urlparse(member.url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file() or not download:
        return path
    hash_prefix = name.rsplit("-", 1)[-1].partition(".")[0]
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(member.url, str(path), hash_prefix, progress=sys.stderr.isatty())
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
        with path.open("rb") as file:
            return Weights(name, path, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror})") from error


def _preset(member: WeightsEnum) -> Preprocessing:
    steps = member.transforms()
    return Preprocessing(
        resize=steps.resize_size[0],
        crop=steps.crop_size[0],
        interpolation=steps.interpolation.value,
        mean=tuple(steps.mean),
        std=tuple(steps.std),
    )
