"""torchvision's classification models. The identity replaces the classifier, which is the last layer.

They return the features [B, D] that are the classifier's input.
"""

from __future__ import annotations

import copy
import warnings
from types import UnionType
from typing import Any, Self

from torch import nn
from torchvision import models
from torchvision.models import WeightsEnum

from embedx.errors import ConfigError, unknown
from embedx.models.backbones.base import Architecture, BackboneKind, BackboneOptions
from embedx.models.backbones.suggestion import suggestion
from embedx.models.weights.find import Weights, find_weights
from embedx.recipe import Preprocessing

AUXILIARY = ("AuxLogits", "aux1", "aux2")
"""The classifiers that Inception and GoogLeNet need for their training only."""
BUILD_OPTIONS: dict[str, dict[str, Any]] = {
    # The builders set these for pretrained weights, which take input normalised in another way.
    name: {"transform_input": True, "aux_logits": False, "init_weights": True}
    for name in ("googlenet", "inception_v3")
}
"""The options of torchvision's builders, by model."""


class TorchvisionBackbone(Architecture):
    """A classification model of torchvision, built for an image size if the model is for one size only."""

    def __init__(self, name: str, weights: Weights, preprocessing: Preprocessing, image_size: int | None) -> None:
        super().__init__(name, weights, preprocessing)
        self._size = image_size or preprocessing.crop

    def for_size(self, image_size: int) -> Self:
        """Returns the same model, to be built for another size."""
        other = copy.copy(self)
        other._size = image_size
        return other

    def build(self) -> tuple[nn.Module, tuple[str, ...]]:
        """Builds the model without its classifier."""
        options: dict[str, Any] = BUILD_OPTIONS.get(self.name, {})
        if self.name.startswith("vit_"):
            options = {"image_size": self._size}
        elif self.name.startswith("maxvit_"):
            options = {"input_size": (self._size, self._size)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # GoogLeNet's and Inception's, on their initialisation
            model: nn.Module = models.get_model(self.name, weights=None, **options)
        head = remove_last(model, nn.Linear | nn.Conv2d)  # a convolution in SqueezeNet
        return model.eval(), (head, *AUXILIARY)


def remove_last(model: nn.Module, kind: type | UnionType) -> str:
    """Puts the identity in place of a model's last layer of a kind, and returns the layer's name."""
    names: list[str] = [name for name, layer in model.named_modules() if isinstance(layer, kind)]
    model.set_submodule(names[-1], nn.Identity())
    return names[-1]


def backbone_names() -> list[str]:
    """Lists torchvision's models for classification, segmentation and detection, and the quantised ones."""
    modules = (models, models.segmentation, models.detection, models.quantization)
    return [name for module in modules for name in models.list_models(module=module)]


def weights_names(backbone: str) -> list[str]:
    """Lists the names of a backbone's pretrained weights."""
    return [weights.name for weights in models.get_model_weights(backbone)]


def check_name(name: str) -> None:
    """Raises a ConfigError, with the nearest name, if torchvision has no model of this name."""
    if name not in (names := backbone_names()):
        if (next_step := suggestion(name)) is not None:
            raise ConfigError(f"unknown backbone {name!r}; {next_step}")
        raise ConfigError(unknown("backbone", name, names, hint="(`embedx backbones` lists them)"))


def find(options: BackboneOptions, download: bool) -> TorchvisionBackbone:
    """Finds a model by its name."""
    check_name(options.backbone)
    weights, member = find_weights(options, download=download)
    return TorchvisionBackbone(options.backbone, weights, preset(member), options.image_size)


def preset(weights: WeightsEnum) -> Preprocessing:
    """Returns the preprocessing of classification or segmentation weights; the latter keep all of a square image."""
    steps = weights.transforms()
    resize, crop = steps.resize_size[0], getattr(steps, "crop_size", steps.resize_size)[0]
    return Preprocessing(resize, crop, steps.interpolation.value, tuple(steps.mean), tuple(steps.std))


KIND = BackboneKind(lambda name: True, find)
