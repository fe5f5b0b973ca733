"""Every torchvision model, from its name and a checkpoint to its layers and a batch of embeddings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torchvision import models

from embedx.config import ExtractConfig
from embedx.models.backbones import describe_backbone, describe_layers

CLASSIFICATION = models.list_models(module=models)
SEGMENTATION = models.list_models(module=models.segmentation)
DETECTION = models.list_models(module=models.detection)
OF_ONE_SIZE = ("vit_", "maxvit_")
SMALLEST = {"inception_v3": 96, "ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 128}
pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_walk_leaves_none_out() -> None:
    assert len(CLASSIFICATION) >= 80 and len(SEGMENTATION) >= 6 and len(DETECTION) >= 12


@pytest.mark.parametrize("backbone", [*CLASSIFICATION, *SEGMENTATION, *DETECTION])
def test_every_model_lists_its_layers_and_gives_one_vector_per_image(tmp_path: Path, backbone: str) -> None:
    size = None if backbone.startswith(OF_ONE_SIZE) else SMALLEST.get(backbone, 64)
    config = ExtractConfig(backbone=backbone, out=tmp_path / "store", image_size=size)
    layers = describe_layers(config)
    assert len(layers) > 5 and all(len(shape) in (1, 2, 3, 4, 5) for shape in layers.values())
    outline = describe_backbone(dataclasses.replace(config, weights="random")).architecture.outline()
    # Tensors of one number stretched to their shapes: a small file.
    stretched = {n: torch.full((), 0.01, dtype=it.dtype).expand(it.shape) for n, it in outline.state_dict().items()}
    torch.save(stretched, tmp_path / "weights.pth")
    spec = describe_backbone(dataclasses.replace(config, checkpoint=tmp_path / "weights.pth"))
    (dimension,) = spec.shapes["embeddings"]
    if backbone == "vit_h_14":  # 2 TFLOP per image, as it takes those of 518 x 518 alone
        assert dimension == 1280
        return
    crop = spec.preprocessing.crop
    with torch.inference_mode():
        rows = spec.load()(torch.full((2, 3, crop, crop), 200, dtype=torch.uint8))["embeddings"]
    assert rows.shape == (2, dimension) and rows.isfinite().all()
