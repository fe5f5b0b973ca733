"""Finding the weights of a backbone: a checkpoint, random ones or torchvision's own, with their file and its sha256."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import socket
import sys
import urllib.error
from collections.abc import Iterable
from pathlib import Path
from typing import Self
from urllib.parse import urlparse

import torch
from torchvision import models
from torchvision.models import WeightsEnum

from embedx import sample
from embedx.config import ExtractConfig
from embedx.errors import CheckpointError, ConfigError, unknown
from embedx.models.weights.read import checkpoint_files, locate
from embedx.names import NO_BACKBONE
from embedx.paths import cache_folder

DOWNLOAD_TIMEOUT = 10.0
"""The seconds without an answer after which a download is given up."""
OTHER_WEIGHTS = "load weights of your own with --checkpoint FILE, or try things out with --weights random"
"""The advice for weights that can't be had."""


@dataclasses.dataclass(frozen=True)
class WeightsOptions:
    """The settings that choose the weights of a backbone; the fields are those of ExtractConfig."""

    backbone: str
    weights: str = "DEFAULT"
    checkpoint: str | None = None
    checkpoint_key: str | None = None
    seed: int = 0

    @classmethod
    def of(cls, config: ExtractConfig) -> Self:
        """Takes the options from the whole configuration."""
        return cls(**{field.name: getattr(config, field.name) for field in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of a backbone: their entry in the recipe, and the file that holds them."""

    name: str
    """The full name of torchvision's weights, `checkpoint`, `sample`, `random`, or `none` without a backbone."""
    path: Path | None = None
    """The file, index or folder; None for random weights, and for a file that has not been downloaded."""
    sha256: str | None = None
    """The sha256 of the file, or of the sha256s, one a line, of a sharded checkpoint's index and its shards by name."""
    seed: int = 0
    key: str | None = None
    """The sub-tree of the checkpoint that holds the weights, where one was chosen."""
    positions: str | None = None
    """The change of the grid of position embeddings, as `24x24 to 14x14`, where they are resampled."""

    def to_json(self) -> dict[str, str | int]:
        """Returns the recipe's entry."""
        if self.name == "random":
            return {"name": self.name, "seed": self.seed}
        if self.name == NO_BACKBONE:
            return {"name": self.name}
        further = {"key": self.key, "position_embeddings": self.positions}
        stated = {name: value for name, value in further.items() if value is not None}
        return {"name": self.name, "sha256": self.sha256 or "not in the cache", **stated}


def given_weights(options: WeightsOptions) -> Weights | None:
    """Returns the checkpoint or the random weights that were asked for; None if the backbone is to use its own.

    Raises:
        CheckpointError: If the checkpoint can't be read.
    """
    if options.checkpoint is not None:
        path = locate(Path(options.checkpoint))
        if not path.exists() and _is_to_be_fetched(path):
            return Weights("checkpoint", key=options.checkpoint_key)
        return dataclasses.replace(weights_of_file("checkpoint", path), key=options.checkpoint_key)
    return Weights("random", seed=options.seed) if options.weights == "random" else None


def _is_to_be_fetched(path: Path) -> bool:
    return path.is_relative_to(cache_folder())


def find_weights(options: WeightsOptions, *, download: bool) -> tuple[Weights, WeightsEnum]:
    """Finds the weights of a torchvision model, and torchvision's entry with the preprocessing that goes with them.

    Raises:
        ConfigError: If there are no weights of this name, or they can't be had.
    """
    backbone = options.backbone
    enum = models.get_model_weights(backbone)
    if (given := given_weights(options)) is not None:
        return given, enum["DEFAULT"]
    if options.weights == "sample":
        if backbone != sample.BACKBONE:
            raise ConfigError(f"--weights sample are those of {sample.BACKBONE}; give --backbone {sample.BACKBONE}")
        return weights_of_file("sample", sample.CHECKPOINT), enum["DEFAULT"]
    name = options.weights.removeprefix(f"{enum.__name__}.")
    if name not in enum.__members__:
        names = [*enum.__members__, "random", "sample"]
        raise ConfigError(unknown("--weights", options.weights, names, hint=f"(of {backbone})"))
    member = enum[name]
    path = _cached(member, download=download)
    full_name = f"{enum.__name__}.{member.name}"
    return (weights_of_file(full_name, path) if path.is_file() else Weights(full_name)), member


def weights_of_file(name: str, path: Path) -> Weights:
    """Returns the weights that a file, the index of a sharded checkpoint, or a folder holds.

    Raises:
        CheckpointError: If a file can't be read.
    """
    first, *others = checkpoint_files(path)
    if not others:
        return Weights(name, path, sha256_of([first]))
    lines = (f"{sha256_of([file])}\n" for file in (first, *others))
    return Weights(name, path, hashlib.sha256("".join(lines).encode()).hexdigest())


def cache_path(url: str) -> Path:
    """Returns the path in torch's cache of a file with this URL, whether it is there or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def _cached(member: WeightsEnum, *, download: bool) -> Path:
    """Returns the weights' path in torch's cache, after downloading them to it if they are missing and `download`."""
    path = cache_path(member.url)
    if path.is_file() or not download:
        return path
    hash_prefix = re.search(r"-([0-9a-f]{8,})\.", path.name)  # some quantised weights' names have none
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            member.url, str(path), hash_prefix and hash_prefix[1], progress=sys.stderr.isatty()
        )
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise CheckpointError(
            [
                f"{type(member).__name__}.{member.name} is not in torch's cache and can't be downloaded ({error}).",
                f"Put the file at {path},",
                f"or {OTHER_WEIGHTS}",
            ]
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return path


def sha256_of(files: Iterable[Path]) -> str:
    """Returns the sha256, in hex, of the files' bytes, one file after another.

    Raises:
        CheckpointError: If a file can't be read.
    """
    sha256 = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                hashlib.file_digest(file, lambda: sha256)
        except OSError as error:
            raise CheckpointError(f"{path}: can't be read ({error.strerror})") from error
    return sha256.hexdigest()
