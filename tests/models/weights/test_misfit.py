"""What a misfit says next fits the case."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from embedx.errors import CheckpointError
from embedx.models.weights.matching import match_tensors


def network(channels: int = 3, width: int = 8, depth: int = 12) -> dict[str, Tensor]:
    parts = {f"body{i}": nn.Linear(width, width) for i in range(depth)}
    return dict(nn.ModuleDict({"stem": nn.Conv2d(channels, width, 7), **parts}).state_dict())


def advice(state: dict[str, Tensor], file: str = "weights.pth") -> str:
    with pytest.raises(CheckpointError) as caught:
        match_tensors(network(), state, source=Path(file))
    return str(caught.value).split("\n")[-1]


@pytest.mark.parametrize(
    ("channels", "way"), [(1, "1 channel, and embedx gives 3, RGB; .*images.mean"), (4, "4 channels, and .*those 4 ch")]
)
def test_a_stem_of_other_channels(channels: int, way: str) -> None:
    import re

    words = advice(network(channels))
    assert (
        re.search(f"^all fits but stem.weight: the model takes {way}", words) and "--backbone module:function" in words
    )


def test_a_variant_names_the_part_that_differs() -> None:
    state = network() | {"body3.weight": torch.zeros(9, 9), "body3.bias": torch.zeros(9)}
    assert advice(state).startswith("the rest fits: it is a checkpoint of a variant with another body3; ")


def test_another_size_is_another_backbone() -> None:
    assert advice(network(width=4)) == "give the --backbone that it is a checkpoint of"


def test_one_file_of_several_names_the_index() -> None:
    half = dict([*network().items()][:9])
    assert advice(half, "model-00001-of-00002.safetensors").endswith("give the .index.json beside them")


@pytest.mark.parametrize(
    ("name", "next_step"),
    [
        ("vit.embeddings.patch_embeddings.projection.weight", "--backbone hf:FOLDER"),
        ("visual.transformer.resblocks.0.attn.in_proj_weight", "--backbone timm:vit_base_patch32_clip_224"),
        ("encoder.layers.encoder_layer_0.ln_1.weight", "--backbone vit_b_16"),
        ("blocks.0.attn.qkv.weight", "--backbone timm:NAME"),
        ("backbone.layer1.0.conv1.weight", "--backbone resnet18"),
        ("base_model.model.vit.query.lora_A.weight", "merge them into the model"),
        ("Transformer/encoderblock_0/LayerNorm_0/bias", "--backbone timm:vit_base_patch16_224"),
    ],
)
def test_another_family_is_named_with_its_backbone(name: str, next_step: str) -> None:
    assert next_step in advice({name: torch.zeros(1)})
