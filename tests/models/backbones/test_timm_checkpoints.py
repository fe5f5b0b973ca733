"""Checkpoints in the originals' names and in other sizes; timm's own loading is the reference."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import timm.layers
import torch
from torch import Tensor, nn

from embedx.config import ExtractConfig
from embedx.errors import CheckpointError
from embedx.models.backbones import BackboneSpec, describe_backbone

pytestmark = pytest.mark.usefixtures("one_thread")


SMALL = "test_vit"
"""timm's own model for tests."""


def random_model(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=7, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05)
    return model


def by_timm(name: str, file: Path, **options: Any) -> dict[str, Tensor]:
    overlay = {"file": str(file), "custom_load": file.suffix == ".npz"}
    model = timm.create_model(name, num_classes=0, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    return dict(model.state_dict())


def describe(name: str, file: Path, **options: Any) -> BackboneSpec:
    return describe_backbone(ExtractConfig(backbone=f"timm:{name}", out=Path("s"), checkpoint=str(file), **options))


def assert_same(spec: BackboneSpec, expected: dict[str, Tensor]) -> None:
    own = spec.load().backbone.state_dict()
    assert own.keys() == expected.keys() and all(torch.equal(own[name], expected[name]) for name in own)


def swin(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Microsoft's names: a stage's downsampling comes last in the stage before; indices and masks are saved."""
    found = {}
    for name, tensor in state.items():
        name = re.sub(r"layers\.(\d+)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", name)
        found[name.replace("head.fc.", "head.")] = tensor
        if name.endswith("relative_position_bias_table"):
            found[name.replace("bias_table", "index")] = torch.zeros(49, 49, dtype=torch.int64)
            found[re.sub(r"attn\.relative.*", "attn_mask", name)] = torch.zeros(4, 49, 49)
    return found


def clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's names, with the text tower beside the image encoder."""
    renamed = {
        "cls_token": "class_embedding", "pos_embed": "positional_embedding", "patch_embed.proj": "conv1",
        "norm_pre": "ln_pre", "blocks.": "transformer.resblocks.", ".norm1": ".ln_1", ".norm2": ".ln_2",
        "norm.": "ln_post.",
        "attn.qkv.": "attn.in_proj_", "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    }  # fmt: skip
    found = {"token_embedding.weight": torch.zeros(9, 4), "positional_embedding": torch.zeros(77, 4)}
    for name, tensor in state.items():
        if not name.startswith("head."):
            for old, new in renamed.items():
                name = name.replace(old, new) if not (old == "norm." and not name.startswith("norm.")) else name
            is_token = name in ("class_embedding", "positional_embedding")
            found[f"visual.{name}"] = tensor.flatten(0, tensor.ndim - 2)[0] if name == "class_embedding" else (
                tensor[0] if is_token else tensor
            )  # fmt: skip
    width = state["cls_token"].shape[-1]
    return found | {"visual.proj": torch.zeros(width, 4), "logit_scale": torch.ones(())}


@pytest.mark.parametrize(
    ("name", "rename", "prefix"),
    [("swin_tiny_patch4_window7_224", swin, "model."), ("vit_xsmall_patch16_clip_224", clip, "")],
)
def test_the_originals_names_are_translated_by_timm(
    name: str, rename: Callable[[dict[str, Tensor]], dict[str, Tensor]], prefix: str, tmp_path: Path
) -> None:
    state = rename(dict(random_model(name).state_dict()))
    torch.save(state, plain := tmp_path / "plain.pth")
    torch.save({f"{prefix}{key}": value for key, value in state.items()}, file := tmp_path / "weights.pth")
    spec = describe(name, file)
    assert_same(spec, by_timm(name, plain))
    assert spec.architecture.match is not None
    assert str(spec.architecture.match).endswith("; names and shapes: translated by its library")


def test_position_embeddings_are_resampled_as_timm_does_and_noted_in_the_recipe(tmp_path: Path) -> None:
    """A masked autoencoder's checkpoint, whose decoder is of no use."""
    state = dict(random_model(SMALL, img_size=64).state_dict())
    others = {"mask_token": torch.zeros(1, 1, 64), "decoder_pos_embed": torch.zeros(1, 17, 8)}
    torch.save({"model": state | others}, file := tmp_path / "mae.pth")
    spec = describe(SMALL, file, image_size=128)
    assert spec.architecture.weights.to_json()["position_embeddings"] == "4x4 to 8x8"
    torch.save(state, plain := tmp_path / "plain.pth")
    assert_same(spec, by_timm(SMALL, plain, img_size=128))
    assert "position embeddings resampled from 4x4 to 8x8 patches" in str(spec.architecture.match)
    same = describe(SMALL, file, image_size=64)
    assert "position_embeddings" not in same.architecture.weights.to_json()
    assert_same(same, by_timm(SMALL, plain, img_size=64))


def test_dinov2_s_chunks_of_blocks_at_another_size(tmp_path: Path) -> None:
    state = dict(random_model(SMALL, img_size=64).state_dict())
    chunked = {re.sub(r"^blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) // 2}.{m[1]}", key): state[key] for key in state}
    chunked["mask_token"] = torch.zeros(1, 64)
    torch.save({"teacher": {f"backbone.{key}": value for key, value in chunked.items()}}, file := tmp_path / "last.pth")
    spec = describe(SMALL, file, image_size=80)
    torch.save(state, plain := tmp_path / "plain.pth")
    assert_same(spec, by_timm(SMALL, plain, img_size=80))
    assert spec.architecture.match is not None and spec.architecture.match.changes == (
        "names: blocks in chunks",
        "position embeddings resampled from 4x4 to 5x5 patches",
    )


def of_jax(state: dict[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    """A ViT's tensors as Google's repository saves them."""
    own = {name: tensor.numpy() for name, tensor in state.items()}
    arrays = {
        "embedding/kernel": own["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": own["patch_embed.proj.bias"],
        "cls": own["cls_token"],
        "Transformer/posembed_input/pos_embedding": own["pos_embed"],
        "Transformer/encoder_norm/scale": own["norm.weight"],
        "Transformer/encoder_norm/bias": own["norm.bias"],
        "head/kernel": own["head.weight"].T,
        "head/bias": own["head.bias"],
    }
    heads, width = 2, own["norm.weight"].size
    for index in range(6):
        old, new = f"blocks.{index}.", f"Transformer/encoderblock_{index}/"
        attention = f"{new}MultiHeadDotProductAttention_1/"
        for part, (weight, bias) in enumerate(
            zip(*(np.split(own[f"{old}attn.qkv.{kind}"], 3) for kind in ("weight", "bias")), strict=True)
        ):
            of = ("query", "key", "value")[part]
            arrays[f"{attention}{of}/kernel"] = weight.T.reshape(width, heads, -1)
            arrays[f"{attention}{of}/bias"] = bias.reshape(heads, -1)
        arrays[f"{attention}out/kernel"] = own[f"{old}attn.proj.weight"].T.reshape(heads, -1, width)
        arrays[f"{attention}out/bias"] = own[f"{old}attn.proj.bias"]
        for norm, number in (("norm1", 0), ("norm2", 2)):
            arrays[f"{new}LayerNorm_{number}/scale"] = own[f"{old}{norm}.weight"]
            arrays[f"{new}LayerNorm_{number}/bias"] = own[f"{old}{norm}.bias"]
        for layer in (0, 1):
            arrays[f"{new}MlpBlock_3/Dense_{layer}/kernel"] = own[f"{old}mlp.fc{layer + 1}.weight"].T
            arrays[f"{new}MlpBlock_3/Dense_{layer}/bias"] = own[f"{old}mlp.fc{layer + 1}.bias"]
    return arrays


def test_jax_s_arrays_are_read_by_timm_s_own_function(tmp_path: Path) -> None:
    arrays: dict[str, Any] = of_jax(dict(random_model(SMALL, img_size=64).state_dict()))
    np.savez(file := tmp_path / "vit.npz", **arrays)
    spec = describe(SMALL, file, image_size=64)
    assert_same(spec, by_timm(SMALL, file, img_size=64))
    del arrays["Transformer/encoderblock_3/LayerNorm_0/scale"]
    np.savez(file, **arrays)
    with pytest.raises(CheckpointError, match="does not fit the backbone"):
        describe(SMALL, file, image_size=64).load()


def test_what_timm_can_not_translate_either_is_a_misfit(tmp_path: Path) -> None:
    state = dict(random_model(SMALL, img_size=32).state_dict())
    del state["blocks.3.attn.qkv.weight"]
    torch.save(state, file := tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"1 missing: blocks\.3\.attn\.qkv\.weight"):
        describe(SMALL, file, image_size=32).load()
