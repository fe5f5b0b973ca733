"""Backbones by name: what they take and give, and how they are loaded. A kind of backbone is one module here."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from embedx.config import ExtractConfig
from embedx.errors import ConfigError
from embedx.models.backbones import dense, factory, huggingface, program, quantized, timm, torchvision
from embedx.models.backbones.base import Architecture, BackboneKind, last_line
from embedx.models.embedder import Embedder
from embedx.models.layers import layer_faults, layer_shapes, with_layers
from embedx.models.preprocessing import resolve_preprocessing
from embedx.models.runtimes.traffic import WrittenBytes
from embedx.models.weights.read import Weights
from embedx.recipe import Preprocessing
from embedx.system.torch_imports import first_without_compiler

_KINDS = (timm.KIND, huggingface.KIND, program.KIND, factory.KIND, dense.KIND, quantized.KIND, torchvision.KIND)
"""The first that matches is it; any text can be a torchvision model's name."""

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class BackboneSpec:
    """A backbone, its weights and what is taken of it, fully determined, nothing of it loaded."""

    architecture: Architecture
    preprocessing: Preprocessing | None
    """None where the inputs are no images."""
    layers: tuple[str, ...]
    pool: str
    normalize: bool
    shapes: dict[str, tuple[int, ...]]
    """Shape of one row of every stored tensor, `embeddings` first: (D,), or (T, D) and (C, H, W) unpooled."""
    written_bytes: float | None = None
    """What the forward pass writes per image, see `WrittenBytes`; None of what is no backbone, or a program."""

    @property
    def name(self) -> str:
        """The backbone's."""
        return self.architecture.name

    @property
    def weights(self) -> Weights:
        """Where its weights come from."""
        return self.architecture.weights

    def load(self) -> Embedder:
        """Builds the backbone with its weights, on the CPU, in evaluation mode.

        Raises:
            CheckpointError: If the weights do not fit.
        """
        return _embedder(self.architecture.load(), self)


def describe_backbone(config: ExtractConfig, *, download: bool = True) -> BackboneSpec:
    """Determines backbone, weights, preprocessing and shapes, loading no weights.

    Args:
        config: The settings.
        download: Whether weights that are in no cache may be fetched.

    Raises:
        ConfigError: If there is no such backbone, layer or weights, or they can't be had, or the backbone does
            not take this image size.
    """
    architecture = _find(config, download)
    if config.backbone_arg and not architecture.arguments:
        raise ConfigError("--backbone-arg is for backbones given as package.module:factory; leave it out")
    preprocessing = resolve_preprocessing(architecture.preprocessing, config, fixed_size=architecture.image_size)
    spec = BackboneSpec(architecture, preprocessing, config.layer, config.pool, config.normalize, shapes={})
    if config.layer:
        _check_has_layers(architecture)
    return first_without_compiler(lambda: _tried_out(spec, preprocessing.crop))


def _tried_out(spec: BackboneSpec, size: int) -> BackboneSpec:
    """The description, with what is told by the backbone's outline as it is built and run."""
    architecture = spec.architecture
    model = architecture.outline()
    ConfigError.check(layer_faults(model, architecture.name, spec.layers))
    embedder = _embedder(model, spec).to(architecture.outline_device)

    written = 0.0

    def row_shapes(batch: int) -> dict[str, tuple[int, ...]]:
        nonlocal written
        images = _images(architecture, batch, size, torch.uint8)
        with contextlib.nullcontext() if architecture.opaque else WrittenBytes() as counter:
            outputs = embedder(images)
        written = counter.total / batch if counter is not None else 0.0
        for rows in {len(output) for output in outputs.values()} - {batch}:
            raise ValueError(
                f"it gives {rows} rows for a batch of {batch}; if it takes batches of {rows}, give --batch-size {rows}"
            )
        return {name: tuple(output.shape[1:]) for name, output in outputs.items()}

    shapes = _try_out(architecture, row_shapes, size)
    return dataclasses.replace(spec, shapes=shapes, written_bytes=None if architecture.opaque else written)


def describe_layers(config: ExtractConfig) -> dict[str, tuple[int, ...]]:
    """What can be given to `--layer` of a backbone, and the shape of its output for one image.

    Raises:
        ConfigError: If there is no such backbone, or it has no layers, or takes no images of this size.
    """
    architecture = _find(config, download=False)
    _check_has_layers(architecture)
    own = architecture.preprocessing
    size = config.image_size or (own.crop if own else architecture.image_size)
    if size is None:
        raise ConfigError(f"nobody knows which images {config.backbone} takes; give --image-size")

    def shapes() -> dict[str, tuple[int, ...]]:
        model = architecture.outline().to(architecture.outline_device)
        return _try_out(
            architecture, lambda batch: layer_shapes(model, _images(architecture, batch, size, torch.float32)), size
        )

    return first_without_compiler(shapes)


def runs_code(name: str) -> bool:
    """Whether a backbone of this name is code of the user's own, or a program that may hold some."""
    return _kind(name).runs_code


def _find(config: ExtractConfig, download: bool) -> Architecture:
    return _kind(config.backbone).find(config, download)


def _kind(name: str) -> BackboneKind:
    return next(kind for kind in _KINDS if kind.matches(name))


def _check_has_layers(architecture: Architecture) -> None:
    if architecture.opaque:
        raise ConfigError(f"{architecture.name} is a program, in which no layers can be told; leave --layer out")


def _images(architecture: Architecture, batch: int, size: int, dtype: torch.dtype) -> Tensor:
    return torch.zeros(batch, 3, size, size, dtype=dtype, device=architecture.outline_device)


def _try_out(architecture: Architecture, run: Callable[[int], dict[str, T]], size: int) -> dict[str, T]:
    """What a run gives, of the first batch size that works.

    Raises:
        ConfigError: If none does.
    """
    faults = []
    for batch in architecture.outline_batches:
        try:
            with torch.no_grad():
                return run(batch)
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001  (it may be anyone's code)
            faults.append(error)
    raise ConfigError(
        f"{architecture.name} does not take images of {size}x{size}: {last_line(faults[-1])}"
    ) from faults[-1]


def _embedder(model: nn.Module, spec: BackboneSpec) -> Embedder:
    features = with_layers(model, spec.layers)
    return Embedder(features, spec.preprocessing, pool=spec.pool, normalize=spec.normalize).eval()
