"""The models of `embedx backbones --tested`: each line is parsed, and its model runs with random weights."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import transformers

from embedx.config import ExtractConfig
from embedx.models.backbones import describe_backbone
from embedx.models.backbones.tested import TESTED, TESTED_BY_CLASS, KnownModel
from tests.cli.calls import COMMANDS
from tests.models.backbones.test_huggingface import CLIP_PROCESSOR, SQUARE, TEXT, TRANSFORMER, VIT_PROCESSOR, save

WIDTHS = {"ResNet-50": 2048, "ConvNeXt": 1024, "ConvNeXt of ImageNet-22k": 1024, "EfficientNetV2": 1280}
WIDTHS |= {"Swin V2": 1024, "DINOv2 ViT-S": 384, "UNI (pathology)": 1024, "OpenCLIP ViT-B": 512}
"""The dimension of the embeddings, as the papers have it, where it is not the 768 of a ViT-B or a ConvNeXt-T."""
PAGE = Path(__file__).parents[3] / "embedx" / "docs" / "backbones.md"


def config(model: KnownModel, **others: Any) -> ExtractConfig:
    """The settings that the command line makes of the line."""
    parsed = COMMANDS["extract"].make_context("extract", ["--out", "store", *model.arguments]).params
    names = {field.name for field in dataclasses.fields(ExtractConfig)}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in parsed.items()}
    return ExtractConfig(**{name: value for name, value in values.items() if name in names} | others)


@pytest.mark.parametrize("model", [pytest.param(each, id=each.title) for each in TESTED])
def test_the_line_is_parsed_and_its_weights_exist(model: KnownModel) -> None:
    assert config(model).backbone == model.backbone
    name = model.backbone.removeprefix("timm:")
    if name != model.backbone:
        assert timm.get_pretrained_cfg(name, allow_unregistered=False).has_weights
    name, _, tag = model.backbone.removeprefix("openclip:").partition("/")
    assert not tag or open_clip.is_pretrained_cfg(name, tag)


@pytest.mark.soak
@pytest.mark.parametrize("model", [pytest.param(each, id=each.title) for each in TESTED])
def test_the_model_runs_with_random_weights(model: KnownModel, tmp_path: Path) -> None:
    """A factory gets its weights from a file, here one that timm itself makes, as UNI's authors did."""
    others: dict[str, Any] = {"weights": "random"}
    if model.title == "UNI (pathology)":
        options = {"init_values": 1e-5, "num_classes": 0, "dynamic_img_size": True}
        others = {"checkpoint": str(tmp_path / "pytorch_model.bin")}
        torch.save(timm.create_model("vit_large_patch16_224", **options).state_dict(), others["checkpoint"])
    spec = describe_backbone(config(model, **others))
    assert spec.preprocessing is not None
    size = spec.preprocessing.crop
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.inference_mode():
        rows = spec.load()(images)["embeddings"]
    assert rows.shape == (2, WIDTHS.get(model.title, 768)) and bool(rows.isfinite().all())
    assert not torch.equal(rows[0], rows[1])


SMALL = {
    "hf:facebook/dinov2-base": (transformers.Dinov2Config(**TRANSFORMER, **SQUARE), VIT_PROCESSOR),
    "hf:facebook/dinov3-vitb16-pretrain-lvd1689m": (
        transformers.DINOv3ViTConfig(**TRANSFORMER, **SQUARE),
        VIT_PROCESSOR,
    ),
    "hf:openai/clip-vit-base-patch16": (
        transformers.CLIPConfig(text_config=TEXT, vision_config={**TRANSFORMER, **SQUARE}, projection_dim=24),
        CLIP_PROCESSOR,
    ),
    "hf:google/siglip2-base-patch16-224": (
        transformers.SiglipConfig(text_config=TEXT, vision_config={**TRANSFORMER, **SQUARE}),
        VIT_PROCESSOR,
    ),
}
"""A small model of each one's class."""


@pytest.mark.parametrize("model", [pytest.param(each, id=each.title) for each in TESTED_BY_CLASS])
def test_a_small_model_of_the_same_class_runs(model: KnownModel, tmp_path: Path) -> None:
    assert config(model).backbone == model.backbone
    save(tmp_path, *SMALL[model.backbone])
    spec = describe_backbone(ExtractConfig(backbone=f"hf:{tmp_path}", out=tmp_path / "store"))
    assert spec.preprocessing is not None
    size = spec.preprocessing.crop
    with torch.inference_mode():
        rows = spec.load()(torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8))["embeddings"]
    assert rows.shape == (2, *spec.shapes["embeddings"]) and bool(rows.isfinite().all())


def test_the_page_lists_these_models() -> None:
    text = PAGE.read_text()
    for model in (*TESTED, *TESTED_BY_CLASS):
        assert shlex.join(model.arguments[:2]) in text, model.title
