"""Backbones by name: what they take and give, and how they are built.

A backbone is a torchvision classification model whose classifier, the last layer, is replaced by the identity:
what it returns are the [B, D] features that the classifier would have seen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from embedx.config import ExtractConfig, Preprocessing
from embedx.errors import ConfigError, unknown
from embedx.models.checkpoints import Weights, find_weights, read_state_dict
from embedx.models.features import Embedder
from embedx.models.matching import CheckpointMatch, fill

EMBEDDINGS = "embeddings"
_RESERVED_TENSORS = {EMBEDDINGS, "index", "targets"}
_AUXILIARY = ("AuxLogits", "aux1", "aux2")
"""Classifiers that Inception and GoogLeNet have for their training alone."""
_BUILD_OPTIONS: dict[str, dict[str, Any]] = {
    # As the builders set them for pretrained weights: those take input normalised in another way.
    name: {"transform_input": True, "aux_logits": False, "init_weights": True}
    for name in ("googlenet", "inception_v3")
}


@dataclasses.dataclass(frozen=True)
class BackboneSpec:
    """A backbone and its weights, fully determined, nothing of it loaded."""

    name: str
    weights: Weights
    native_size: int
    """Height and width that the weights are made for."""
    preprocessing: Preprocessing
    layers: tuple[str, ...]
    pool: str
    normalize: bool
    shapes: dict[str, tuple[int, ...]]
    """Shape of one row of every stored tensor, `embeddings` first: (D,), or (T, D) and (C, H, W) unpooled."""

    def load(self, on_match: Callable[[CheckpointMatch], None] | None = None) -> Embedder:
        """Builds the backbone with its weights, on the CPU, in evaluation mode.

        Args:
            on_match: Is told how the weights' file was matched, if there is one.

        Raises:
            CheckpointError: If the weights do not fit.
        """
        if self.weights.path is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.weights.seed)
                model, _ = _build(self.name, self.native_size)
        else:
            with _parameters_on_meta():
                model, head = _build(self.name, self.native_size)
            path, key = self.weights.path, self.weights.key
            match = fill(model, read_state_dict(path), source=path, heads=(head, *_AUXILIARY), key=key)
            if on_match is not None:
                on_match(match)
        return _embedder(model, self)


def backbone_names() -> list[str]:
    """Every torchvision classification model."""
    return list(models.list_models(module=models))


def weights_names(backbone: str) -> list[str]:
    """Names of a backbone's pretrained weights."""
    return [weights.name for weights in models.get_model_weights(backbone)]


def describe_backbone(config: ExtractConfig, *, download: bool = True) -> BackboneSpec:
    """Determines backbone, weights, preprocessing and shapes, loading no weights.

    Args:
        config: The settings.
        download: Whether torchvision weights that are not in torch's cache may be fetched.

    Raises:
        ConfigError: If there is no such backbone, layer or weights, or they can't be had, or the backbone does
            not take this image size.
    """
    if config.backbone not in (names := backbone_names()):
        raise ConfigError(unknown("backbone", config.backbone, names, hint="(`embedx backbones` lists them)"))
    weights, preset = find_weights(config, download=download)
    preprocessing = dataclasses.replace(preset.with_image_size(config.image_size), exif=config.exif)
    spec = BackboneSpec(
        config.backbone,
        weights,
        preset.crop,
        preprocessing,
        config.layer,
        config.pool,
        config.normalize,
        shapes={},
    )
    with _parameters_on_meta():
        model, _ = _build(spec.name, spec.native_size)
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


def _build(name: str, native_size: int) -> tuple[nn.Module, str]:
    """Builds a model without its classifier; returns it with the classifier's name."""
    options = {"image_size": native_size} if name.startswith("vit_") else _BUILD_OPTIONS.get(name, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # GoogLeNet's and Inception's, on their initialisation
        model: nn.Module = models.get_model(name, weights=None, **options)
    head = [
        layer_name
        for layer_name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)  # a convolution in SqueezeNet
    ][-1]
    model.set_submodule(head, nn.Identity())
    return model.eval(), head


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


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
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
