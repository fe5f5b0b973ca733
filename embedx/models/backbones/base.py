"""The interface of every kind of backbone: a module that can be built, its weights, and its preprocessing."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from embedx.models.text_towers import TextTower, no_texts
from embedx.models.weights.find import Weights, WeightsOptions
from embedx.models.weights.matching import CheckpointMatch, fill
from embedx.models.weights.position import is_position, position_change
from embedx.models.weights.read import read_state_dict
from embedx.recipe import Preprocessing
from embedx.values import PrecisionName


@dataclasses.dataclass(frozen=True)
class BackboneOptions(WeightsOptions):
    """The settings by which a kind of backbone finds one; the fields are those of ExtractConfig."""

    backbone_arg: tuple[str, ...] = ()
    image_size: int | None = None
    batch_size: int | Literal["auto"] | None = "auto"
    precision: PrecisionName | None = None
    device: str = "auto"


class Architecture(ABC):
    """A backbone that was found, with its weights; none of its tensors are loaded yet.

    Args:
        name: The text that was given to `--backbone`.
        weights: The backbone's own weights, a checkpoint's, or random ones.
        preprocessing: The preprocessing that goes with the weights; None if it is unknown.
    """

    image_size: int | None = None
    """The height and width in pixels of the only images that the backbone takes; None if it takes others too."""
    arguments: Mapping[str, Any] = MappingProxyType({})
    """The arguments of the backbone's factory, parsed from `--backbone-arg`."""
    outline_device = torch.device("meta")
    """The device of `outline`. On any other than meta, the outline holds all its weights."""
    outline_batches: tuple[int, ...] = (2,)
    """The batch sizes to try the outline with, until one works. One image alone would not show which axis is the batch.
    """
    is_program = False
    """True for a program, whose parts can't be reached, so that it has no layers."""
    is_fixed = False
    """True if it only runs as it was made, in its own precision and in eager mode."""
    match: CheckpointMatch | None = None
    """The way in which a checkpoint was matched, once it is loaded."""
    fills = True
    """True if the weights are set by `fill`, and not by a library that has its own way."""
    libraries: tuple[str, ...] = ()
    """The packages besides torchvision that build it; a store's environment records their versions."""

    def __init__(self, name: str, weights: Weights, preprocessing: Preprocessing | None) -> None:
        self.name = name
        self.weights = weights
        self.preprocessing = preprocessing

    @abstractmethod
    def build(self) -> tuple[nn.Module, tuple[str, ...]]:
        """Builds the module, without weights or with random ones.

        Returns:
            The module in evaluation mode, which makes vectors [B, D], maps or tokens of normalised images
            [B, 3, H, W]; and the names of the parts that were taken out of it, such as a classifier, whose tensors a
            checkpoint may still hold.
        """

    def outline(self) -> nn.Module:
        """Builds the module to read names and shapes from; its parameters, at least, are on `outline_device`."""
        with self.building():
            return self.build()[0]

    def for_size(self, image_size: int) -> Self:
        """Returns the same backbone for images of another size; itself, unless it is built for one size."""
        return self

    def building(self) -> contextlib.AbstractContextManager[None]:
        """Returns the context to build in if the weights don't matter, or are set afterwards."""
        return parameters_on_meta() if self.outline_device.type == "meta" else torch.random.fork_rng(devices=[])

    def load(self) -> nn.Module:
        """Builds the module with its weights, on the CPU.

        Raises:
            CheckpointError: If the weights do not fit.
        """
        path = self.weights.path
        if path is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.weights.seed)
                return self.build()[0]
        with self.building():
            model, removed = self.build()
        state = read_state_dict(path)
        self.match = fill(model, state, source=path, heads=removed, key=self.weights.key, translate=self.translate)
        return model

    def translate(self, model: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        """Translates a checkpoint's tensors to the model's names and shapes; None if nothing is known of them."""
        return None

    def text_tower(self) -> TextTower:
        """Loads what embeds texts in the space of the images' embeddings, of the same weights, on the CPU.

        Raises:
            ConfigError: If the backbone has no such thing, or its tokenizer can't be had.
        """
        raise no_texts(self.name)

    def note_positions(self, outline: nn.Module) -> None:
        """Notes the position embeddings that are to be resampled in the weights' entry of the recipe."""
        path = self.weights.path
        wanted = [tensor.shape for name, tensor in outline.state_dict().items() if is_position(name)]
        if path is not None and wanted and self.fills:
            changes = position_change(read_state_dict(path), wanted[0])
            self.weights = dataclasses.replace(self.weights, positions=changes)


class BackboneKind(NamedTuple):
    """One kind of backbone, as `describe_backbone` looks for it."""

    matches: Callable[[str], bool]
    """Tells whether a text that was given to `--backbone` names a backbone of this kind."""
    find: Callable[[BackboneOptions, bool], Architecture]
    """Finds the backbone, given the options and whether weights may be downloaded.

    Raises a ConfigError with the next step if there is no such backbone, or its weights can't be had."""
    runs_code: bool = False
    """True if finding a backbone can run code that belongs neither to embedx nor to an installed library."""
    embeds_texts: bool = False
    """True if some backbones of this kind have a text tower."""


def fixed_precision_faults(options: BackboneOptions) -> list[str]:
    """Returns the fault of asking for bf16 or fp16, for a backbone that computes in the precision it was made in."""
    if options.precision in ("bf16", "fp16"):
        return [f"--precision {options.precision}: {options.backbone} computes as it was made; leave it out"]
    return []


def last_line(error: BaseException) -> str:
    """Returns the last line of an error's text; those of TorchScript begin with a whole traceback."""
    return str(error).strip().rsplit("\n", 1)[-1]


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Puts the parameters of this thread's new modules on the meta device: they take no memory and no time.

    Buffers stay real. `torch.device("meta")` would take them too, and with them the values that builders compute.
    """
    thread = threading.get_ident()

    def on_meta(module: nn.Module, name: str, param: nn.Parameter) -> nn.Parameter | None:
        if threading.get_ident() != thread:  # which builds modules of its own
            return None
        return nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)

    hook = register_module_parameter_registration_hook(on_meta)  # type: ignore[arg-type]  # it may return one
    try:
        yield
    finally:
        hook.remove()
