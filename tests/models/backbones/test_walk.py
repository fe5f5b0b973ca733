"""Every torchvision model, from its name and a checkpoint to its layers and a batch of embeddings."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import models

from embedx.config import ExtractConfig
from embedx.models.backbones import describe_backbone, describe_layers
from embedx.models.backbones.base import BackboneOptions, parameters_on_meta
from tests.models.steps import steps_of

CLASSIFICATION = models.list_models(module=models)
SEGMENTATION = models.list_models(module=models.segmentation)
DETECTION = models.list_models(module=models.detection)
MODELS = [*CLASSIFICATION, *SEGMENTATION, *DETECTION]
LARGE = re.compile("efficientnet_(b[3-7]|v2)|densenet|swin_.*[sb]$|swin_v2|maxvit|vit_[lh]|regnet|resnet152|resnext101")
OF_ONE_SIZE = ("vit_", "maxvit_")
SMALLEST = {"inception_v3": 96, "ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 128}
pytestmark = pytest.mark.usefixtures("one_thread")


def config_of(backbone: str, **settings: Any) -> ExtractConfig:
    size = None if backbone.startswith(OF_ONE_SIZE) else SMALLEST.get(backbone, 64)
    return ExtractConfig(backbone=backbone, out=Path("store"), image_size=size, **settings)


def test_the_walk_leaves_none_out() -> None:
    assert len(CLASSIFICATION) >= 80 and len(SEGMENTATION) >= 6 and len(DETECTION) >= 12


@pytest.mark.parametrize(
    "backbone", [pytest.param(name, marks=pytest.mark.soak) if LARGE.search(name) else name for name in CLASSIFICATION]
)
def test_every_model_gives_one_vector_per_image(backbone: str) -> None:
    """By shapes alone; nothing is computed."""
    (dimension,) = describe_backbone(config_of(backbone, weights="random")).shapes["embeddings"]
    assert dimension >= 64


def state_dict(backbone: str) -> dict[str, Tensor]:
    """torchvision's own, mostly without values."""
    runs_when_built = backbone.startswith("ssdlite320")
    options = {} if backbone in CLASSIFICATION else {"weights_backbone": None}
    with contextlib.nullcontext() if runs_when_built else parameters_on_meta():
        return dict(models.get_model(backbone, weights=None, **options).state_dict())


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize("backbone", MODELS)
def test_every_model_lists_its_layers_and_gives_one_vector_per_image(tmp_path: Path, backbone: str) -> None:
    layers = describe_layers(BackboneOptions.of(config_of(backbone)))
    assert len(layers) > 5 and all(len(shape) in (1, 2, 3, 4, 5) for shape in layers.values())
    # Tensors of one number stretched to their shapes: a small file.
    stretched = {n: torch.full((), 0.01, dtype=it.dtype).expand(it.shape) for n, it in state_dict(backbone).items()}
    torch.save(stretched, tmp_path / "weights.pth")
    spec = describe_backbone(config_of(backbone, checkpoint=tmp_path / "weights.pth"))
    (dimension,) = spec.shapes["embeddings"]
    if backbone == "vit_h_14":  # 2 TFLOP per image, as it takes those of 518 x 518 alone
        assert dimension == 1280
        return
    crop = steps_of(spec).crop
    with torch.inference_mode():
        rows = spec.load()(torch.full((2, 3, crop, crop), 200, dtype=torch.uint8))["embeddings"]
    assert rows.shape == (2, dimension) and rows.isfinite().all()
