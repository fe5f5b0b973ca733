"""What every kind of backbone is: a module that can be built, its weights, and the preprocessing they need."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

from embedx.config import ExtractConfig
from embedx.models.weights.matching import CheckpointMatch, fill
from embedx.models.weights.read import Weights, read_state_dict
from embedx.recipe import Preprocessing


class Architecture(ABC):
    """A backbone that was found, with its weights; nothing of it is loaded yet."""

    name: str
    """As it is given to `--backbone`."""
    weights: Weights
    preprocessing: Preprocessing | None
    """The weights' own; None if nobody knows."""
    image_size: int | None = None
    """Height and width of the only images it takes, if it says so."""
    arguments: Mapping[str, Any] = MappingProxyType({})
    """What else it was built with, as `--backbone-arg` gave it."""
    outline_device = torch.device("meta")
    """Where `outline` is; on another one the module is built with all its weights."""
    outline_batches: tuple[int, ...] = (2,)
    """Batch sizes to try its outline with, until one works; in a batch of one, what is no row could look like one."""
    opaque = False
    """Whether nothing within it can be had: it has no layers."""
    match: CheckpointMatch | None = None
    """How a checkpoint was matched, once it is loaded."""
    libraries: tuple[str, ...] = ()
    """What it is built with besides torchvision; a store's environment has their versions."""

    @abstractmethod
    def build(self) -> tuple[nn.Module, tuple[str, ...]]:
        """Builds the module, without weights or with random ones.

        Returns:
            In evaluation mode, from normalised images [B, 3, H, W] to vectors [B, D], maps or tokens; and the names
            of those of its parts, such as a classifier, that were taken out: a checkpoint may still have them.
        """

    def outline(self) -> nn.Module:
        """The module on `outline_device`, or its parameters at least, to tell names and shapes by."""
        with self.building():
            return self.build()[0]

    def building(self) -> contextlib.AbstractContextManager[None]:
        """What to build in if the weights do not matter, or come later."""
        return parameters_on_meta() if self.outline_device.type == "meta" else torch.random.fork_rng(devices=[])

    def load(self) -> nn.Module:
        """The module with its weights, on the CPU.

        Raises:
            CheckpointError: If they do not fit.
        """
        if self.weights.path is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.weights.seed)
                return self.build()[0]
        with self.building():
            model, removed = self.build()
        self.fill(model, removed)
        return model

    def fill(self, model: nn.Module, removed: tuple[str, ...]) -> None:
        """Sets every tensor of a module from the weights' file.

        Args:
            model: As `build` returns it; its parameters may be on the meta device.
            removed: Names of the parts that were taken out of it.

        Raises:
            CheckpointError: If the file does not fit.
        """
        path = self.weights.path
        if path is None:
            raise ValueError(f"the weights {self.weights.name} are in no file")
        self.match = fill(model, read_state_dict(path), source=path, heads=removed, key=self.weights.key)


class BackboneKind(NamedTuple):
    """One kind of backbone, as `describe_backbone` knows it."""

    matches: Callable[[str], bool]
    """Whether what is given to `--backbone` is of this kind."""
    find: Callable[[ExtractConfig, bool], Architecture]
    """From the settings, and whether weights may be downloaded, to the architecture.

    Raises a ConfigError, with what to do about it, if there is no such backbone, or its weights can't be had."""
    runs_code: bool = False
    """Whether finding one runs code, or may run code, that is neither embedx's nor an installed library's."""


def fixed_precision_faults(config: ExtractConfig) -> list[str]:
    """The fault of asking a backbone for another precision than the one that it was made in."""
    if config.precision in ("bf16", "fp16"):
        return [f"--precision {config.precision}: {config.backbone} computes as it was made; leave it out"]
    return []


def last_line(error: BaseException) -> str:
    """What an error says in the end: TorchScript's begin with a whole traceback."""
    return str(error).strip().rsplit("\n", 1)[-1]


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """While this lasts, new modules' parameters take no memory and no time to initialise; buffers are real.

    A whole `torch.device("meta")` would take the buffers too, and with them what builders compute.
    """
    register = nn.Module.register_parameter

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None:
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
