"""Backbones by name: what they take and give, and how they are loaded. A kind of backbone is one module here."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from embedx.config import ExtractConfig, Preprocessing
from embedx.errors import ConfigError, unknown
from embedx.models.backbones import huggingface, timm, torchvision
from embedx.models.backbones.base import Architecture
from embedx.models.checkpoints import Weights
from embedx.models.features import Embedder

EMBEDDINGS = "embeddings"
_RESERVED_TENSORS = {EMBEDDINGS, "index", "targets"}
_KINDS = (timm.KIND, huggingface.KIND, torchvision.KIND)
"""The first that matches is it; any text can be a torchvision model's name."""


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
    architecture = next(kind for kind in _KINDS if kind.matches(config.backbone)).find(config, download)
    preprocessing = _preprocessing(architecture, config)
    spec = BackboneSpec(architecture, preprocessing, config.layer, config.pool, config.normalize, shapes={})
    model = architecture.outline()
    if faults := _layer_faults(model, config):
        raise ConfigError(faults)
    size = preprocessing.crop
    try:
        with torch.no_grad():
            outputs = _embedder(model, spec).to("meta")(torch.empty(1, 3, size, size, dtype=torch.uint8, device="meta"))
    except ConfigError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{config.backbone} does not take images of {size}x{size}: {error}") from error
    return dataclasses.replace(spec, shapes={name: tuple(out.shape[1:]) for name, out in outputs.items()})


def _preprocessing(architecture: Architecture, config: ExtractConfig) -> Preprocessing:
    """The backbone's own, with what the settings change of it."""
    own = architecture.preprocessing
    if own is None:
        raise ConfigError(f"nobody knows which preprocessing {architecture.name} needs")
    return dataclasses.replace(own.with_image_size(config.image_size), exif=config.exif)


def _embedder(model: nn.Module, spec: BackboneSpec) -> Embedder:
    features = model
    if spec.layers:
        *_, last = get_graph_node_names(model)[1]
        features = create_feature_extractor(
            model, {last: EMBEDDINGS, **dict(zip(spec.layers, spec.layers, strict=True))}
        )
    return Embedder(features, spec.preprocessing, pool=spec.pool, normalize=spec.normalize).eval()


def _layer_faults(model: nn.Module, config: ExtractConfig) -> list[str]:
    if not config.layer:
        return []
    _image, *nodes = get_graph_node_names(model)[1]
    prefixes = {node.rsplit(".", depth)[0] for node in nodes for depth in range(node.count(".") + 1)}
    faults = []
    for layer in config.layer:
        if layer not in prefixes or layer in _RESERVED_TENSORS:
            faults.append(unknown("--layer", layer, prefixes, hint=f"(in {config.backbone})"))
        elif f"{nodes[-1]}.".startswith(f"{layer}."):
            faults.append(f"--layer {layer} gives the embeddings themselves, which are stored anyway; leave it out")
    return faults
