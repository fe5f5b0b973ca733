"""torchvision's classification models, whose classifier, the last layer, is replaced by the identity.

What they return are the [B, D] features that the classifier would have seen.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn
from torchvision import models
from torchvision.models import WeightsEnum

from embedx.config import ExtractConfig
from embedx.errors import ConfigError, unknown
from embedx.models.backbones.base import Architecture, BackboneKind
from embedx.models.weights.read import Weights, find_weights
from embedx.recipe import Preprocessing

AUXILIARY = ("AuxLogits", "aux1", "aux2")
"""Classifiers that Inception and GoogLeNet have for their training alone."""
BUILD_OPTIONS: dict[str, dict[str, Any]] = {
    # As the builders set them for pretrained weights: those take input normalised in another way.
    name: {"transform_input": True, "aux_logits": False, "init_weights": True}
    for name in ("googlenet", "inception_v3")
}
"""Of models by their names."""


class Classification(Architecture):
    """A classification model by its name."""

    def __init__(self, name: str, weights: Weights, preprocessing: Preprocessing) -> None:
        self.name = name
        self.weights = weights
        self.preprocessing: Preprocessing = preprocessing

    def build(self) -> tuple[nn.Module, tuple[str, ...]]:
        """The model without its classifier."""
        vision_transformer = self.name.startswith("vit_")
        options = {"image_size": self.preprocessing.crop} if vision_transformer else BUILD_OPTIONS.get(self.name, {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # GoogLeNet's and Inception's, on their initialisation
            model: nn.Module = models.get_model(self.name, weights=None, **options)
        head = [
            name
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d)  # a convolution in SqueezeNet
        ][-1]
        model.set_submodule(head, nn.Identity())
        return model.eval(), (head, *AUXILIARY)


def backbone_names() -> list[str]:
    """Every torchvision model that is a backbone: for classification, segmentation, detection, and quantised."""
    modules = (models, models.segmentation, models.detection, models.quantization)
    return [name for module in modules for name in models.list_models(module=module)]


def weights_names(backbone: str) -> list[str]:
    """Names of a backbone's pretrained weights."""
    return [weights.name for weights in models.get_model_weights(backbone)]


def find(config: ExtractConfig, download: bool) -> Classification:
    """Finds a model by its name."""
    if config.backbone not in (names := backbone_names()):
        raise ConfigError(unknown("backbone", config.backbone, names, hint="(`embedx backbones` lists them)"))
    weights, member = find_weights(config, download=download)
    return Classification(config.backbone, weights, preset(member))


def preset(weights: WeightsEnum) -> Preprocessing:
    """The preprocessing of classification or segmentation weights; the latter cut nothing off a square image."""
    steps = weights.transforms()
    return Preprocessing(
        resize=steps.resize_size[0],
        crop=getattr(steps, "crop_size", steps.resize_size)[0],
        interpolation=steps.interpolation.value,
        mean=tuple(steps.mean),
        std=tuple(steps.std),
    )


KIND = BackboneKind(lambda name: True, find)
