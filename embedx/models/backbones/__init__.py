"""Backbones by name: their inputs and outputs, and how they are loaded. Each kind of backbone is one module here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from embedx.config import ExtractConfig
from embedx.errors import ConfigError
from embedx.models.backbones import dense, factory, huggingface, openclip, program, quantized, timm, torchvision
from embedx.models.backbones.base import Architecture, BackboneKind, BackboneOptions, last_line
from embedx.models.embedder import Embedder, constant_dim, shown_channel_dim
from embedx.models.layers import layer_faults, layer_shapes, with_layers
from embedx.models.preprocessing import PreprocessingOptions, resolve_preprocessing
from embedx.models.text_towers import no_texts
from embedx.models.threads import ONE_AT_A_TIME
from embedx.recipe import Preprocessing

_KINDS = (
    *(timm.KIND, huggingface.KIND, openclip.KIND, program.KIND, factory.KIND),
    *(dense.KIND, quantized.KIND, torchvision.KIND),
)
"""The kinds in the order in which they are asked; the last takes any text for the name of a torchvision model."""

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class BackboneSpec:
    """A backbone, its weights and its outputs, fully determined; none of its weights are loaded."""

    architecture: Architecture
    preprocessing: Preprocessing | None
    """The preprocessing; None if the inputs are not images."""
    layers: tuple[str, ...]
    pool: str
    normalize: bool
    shapes: dict[str, tuple[int, ...]]
    """The shape of one row of every stored tensor, `embeddings` first: (D,), or (T, D) and (C, H, W) unpooled."""
    input_shape: tuple[int, ...] = ()
    """The shape of one input where the inputs are features, (D,) or (T, D); () for images."""
    channels: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """The dimension of the channels of each map whose shape leaves it open, by the tensor's name."""

    def load(self) -> Embedder:
        """Builds the backbone with its weights, on the CPU, in evaluation mode.

        Raises:
            CheckpointError: If the weights do not fit.
        """
        return _embedder(self.architecture.load(), self)


@ONE_AT_A_TIME
def describe_backbone(config: ExtractConfig, *, download: bool = True) -> BackboneSpec:
    """Determines backbone, weights, preprocessing and shapes, without loading the weights.

    Args:
        config: The settings of the run.
        download: Whether weights that are in no cache may be fetched.

    Raises:
        ConfigError: If there is no such backbone, layer or weights, or they can't be had, or the backbone does
            not take this image size.
    """
    options = BackboneOptions.of(config)
    architecture = _find(options, download)
    preprocessing = resolve_preprocessing(
        architecture.preprocessing, PreprocessingOptions.of(config), fixed_size=architecture.image_size
    )
    spec = BackboneSpec(architecture, preprocessing, config.layer, config.pool, config.normalize, shapes={})
    if config.layer:
        _check_has_layers(architecture)
    return _with_shapes(spec, preprocessing.crop)


@ONE_AT_A_TIME
def describe_layers(options: BackboneOptions) -> dict[str, tuple[int, ...]]:
    """Returns the names that `--layer` takes for a backbone, each with the shape of its output for one image.

    Raises:
        ConfigError: If there is no such backbone, or it has no layers, or takes no images of this size.
    """
    architecture = _find(options, False)
    _check_has_layers(architecture)
    own = architecture.preprocessing
    size = options.image_size or (own.crop if own else architecture.image_size)
    if size is None:
        raise ConfigError(f"the size of the images that {options.backbone} takes is unknown; give --image-size")
    model = _outline(architecture, size).to(architecture.outline_device)

    def shapes(batch: int) -> dict[str, tuple[int, ...]]:
        return layer_shapes(model, _blank_images(architecture, batch, size, torch.float32))

    return _try_batches(architecture, shapes, size)


@ONE_AT_A_TIME
def find_text_model(options: BackboneOptions) -> Architecture:
    """Finds a backbone whose kind can have a text tower; none of its weights are loaded.

    Raises:
        ConfigError: If it is of another kind, or can't be found.
    """
    check_embeds_texts(options.backbone)
    return _find(options, True)


def check_embeds_texts(name: str) -> None:
    """Raises a ConfigError if no backbone of this one's kind has a text tower."""
    if not _kind(name).embeds_texts:
        raise no_texts(name)


def _find(options: BackboneOptions, download: bool) -> Architecture:
    """Returns the backbone's architecture; raises a ConfigError if it takes no arguments, and some are given."""
    architecture = _kind(options.backbone).find(options, download)
    if options.backbone_arg and not architecture.arguments:
        raise ConfigError("--backbone-arg is for backbones given as package.module:factory; leave it out")
    return architecture


def runs_code(name: str) -> bool:
    """Tells whether finding the backbone of this name can run the user's code, or code inside a file."""
    return _kind(name).runs_code


def _kind(name: str) -> BackboneKind:
    return next(kind for kind in _KINDS if kind.matches(name))


def _check_has_layers(architecture: Architecture) -> None:
    if architecture.is_program:
        raise ConfigError(f"{architecture.name} is a program, whose layers can't be reached; leave --layer out")


def _with_shapes(spec: BackboneSpec, size: int) -> BackboneSpec:
    """Completes a description by running the backbone's outline on blank images."""
    architecture = spec.architecture
    model = _outline(architecture, size)
    ConfigError.check(layer_faults(model, architecture.name, spec.layers))
    architecture.note_positions(model)
    embedder = _embedder(model, spec).to(architecture.outline_device)
    channels: dict[str, int] = {}

    def row_shapes(batch: int) -> dict[str, tuple[int, ...]]:
        nonlocal channels
        images = _blank_images(architecture, batch, size, torch.uint8)
        features = embedder.features(images)
        channels = embedder.channels = _channels(spec, features, size)
        outputs = embedder.pooled(features)
        for rows in {len(output) for output in outputs.values()} - {batch}:
            raise ValueError(
                f"it gives {rows} rows for a batch of {batch}; if it takes batches of {rows}, give --batch-size {rows}"
            )
        return {name: tuple(output.shape[1:]) for name, output in outputs.items()}

    shapes = _try_batches(architecture, row_shapes, size)
    return dataclasses.replace(spec, shapes=shapes, channels=channels)


def _channels(spec: BackboneSpec, features: Mapping[str, Tensor], size: int) -> dict[str, int]:
    """Finds the channels of maps with as many channels as rows: images of twice the size change all but these."""
    unclear = {name: value for name, value in features.items() if shown_channel_dim(value.shape) is None}
    if not unclear or (spec.pool == "none" and not spec.normalize):
        return {}
    architecture = spec.architecture.for_size(2 * size)
    try:
        embedder = _embedder(architecture.outline(), spec).to(architecture.outline_device)
        images = _blank_images(architecture, len(next(iter(unclear.values()))), 2 * size, torch.uint8)
        larger = embedder.features(images)
    except Exception:  # noqa: BLE001  (anyone's code, which may take no other size)
        return {}
    found = {name: constant_dim(value.shape, larger[name].shape) for name, value in unclear.items()}
    return {name: dim for name, dim in found.items() if dim is not None}


def _outline(architecture: Architecture, size: int) -> nn.Module:
    """Builds the outline; raises a ConfigError if the backbone can't be built for images of this size."""
    try:
        return architecture.outline()
    except (AssertionError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{architecture.name} does not take images of {size}x{size}: {reason}") from error


def _blank_images(architecture: Architecture, batch: int, size: int, dtype: torch.dtype) -> Tensor:
    return torch.zeros(batch, 3, size, size, dtype=dtype, device=architecture.outline_device)


def _try_batches(architecture: Architecture, run: Callable[[int], dict[str, T]], size: int) -> dict[str, T]:
    """Calls a function with one batch size after the other, and returns the result of the first that works.

    Raises:
        ConfigError: If none works.
    """
    faults = []
    for batch in architecture.outline_batches:
        try:
            with torch.no_grad():
                return run(batch)
        except (ConfigError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001  (it may be anyone's code)
            faults.append(error)
    raise ConfigError(
        f"{architecture.name} does not take images of {size}x{size}: {last_line(faults[-1])}"
    ) from faults[-1]


def _embedder(model: nn.Module, spec: BackboneSpec) -> Embedder:
    features = with_layers(model, spec.layers)
    return Embedder(
        features, spec.preprocessing, pool=spec.pool, normalize=spec.normalize, channels=spec.channels
    ).eval()
