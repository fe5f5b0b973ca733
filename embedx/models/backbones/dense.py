"""torchvision's segmentation and detection models: the body in front of their heads.

The features are the body's deepest map [B, C, H, W], before any feature pyramid; for SSD and SSDlite the last of their
maps. Images are centre squares, with the side to which the model itself resizes an image's shorter side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import WeightsEnum

from embedx.models.backbones.base import Architecture, BackboneKind, BackboneOptions
from embedx.models.backbones.torchvision import preset
from embedx.models.weights.find import Weights, find_weights
from embedx.recipe import Preprocessing

_SEGMENTATION = frozenset(models.list_models(module=models.segmentation))
_DETECTION = frozenset(models.list_models(module=models.detection))
_RUN_WHEN_BUILT = ("ssdlite320_mobilenet_v3_large",)
"""The models whose builder runs their body, which fails with parameters on the meta device."""
_WITHOUT_EPSILON = (
    models.detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
    models.detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1,
    models.detection.KeypointRCNN_ResNet50_FPN_Weights.COCO_V1,
    models.detection.RetinaNet_ResNet50_FPN_Weights.COCO_V1,
)
"""The weights that were trained, and are used by torchvision, with a batch normalisation whose epsilon is 0."""
_HEADS = ("classifier", "aux_classifier", "rpn", "roi_heads", "head", "backbone.fpn")
"""The parts that follow the body, by their names in the models."""


class DeepestMap(nn.Module):
    """The body of a model, held under its dotted name in the model, so that the model's weights fit."""

    def __init__(self, path: str, body: nn.Module) -> None:
        super().__init__()
        self.path = path
        holder: nn.Module = self
        *parents, name = path.split(".")
        for parent in parents:
            holder.add_module(parent, nn.Module())
            holder = holder.get_submodule(parent)
        holder.add_module(name, body)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the deepest map [B, C, H, W] of images [B, 3, H, W], which is the body's last."""
        maps: list[Tensor] = list(self.get_submodule(self.path)(images).values())
        return maps[-1]


class DenseBackbone(Architecture):
    """The body of a segmentation or detection model of torchvision."""

    def __init__(self, name: str, weights: Weights, member: WeightsEnum) -> None:
        self._without_epsilon = weights.name == f"{type(member).__name__}.{member.name}" and member in _WITHOUT_EPSILON
        if name in _RUN_WHEN_BUILT:
            self.outline_device = torch.device("cpu")
        super().__init__(name, weights, preset(member) if name in _SEGMENTATION else self._own_preprocessing(name))

    def build(self) -> tuple[nn.Module, tuple[str, ...]]:
        """Builds the body without the parts that follow it."""
        model = _whole(self.name)
        path = "backbone.body" if hasattr(model.backbone, "body") else "backbone"
        body = model.get_submodule(path)
        if self._without_epsilon:
            for module in body.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eps = torch.finfo(torch.float32).tiny  # not 0, which torch 2.11 refuses
        return DeepestMap(path, body).eval(), _HEADS

    def _own_preprocessing(self, name: str) -> Preprocessing:
        """Reads the preprocessing that a detection model does by itself."""
        with self.building():
            steps = _whole(name).transform
        side, mean, std = steps.min_size[-1], tuple(steps.image_mean), tuple(steps.image_std)
        return Preprocessing(side, side, "bilinear", mean, std)


def find(options: BackboneOptions, download: bool) -> DenseBackbone:
    """Finds a model by its name."""
    return DenseBackbone(options.backbone, *find_weights(options, download=download))


def _whole(name: str) -> Any:
    return models.get_model(name, weights=None, weights_backbone=None)


KIND = BackboneKind(lambda name: name in _SEGMENTATION | _DETECTION, find)
