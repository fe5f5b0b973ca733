from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm.layers
import torch
from torch import nn
from torchvision import models
from torchvision.transforms.v2 import functional as transforms

from embedx.config import ExtractConfig
from embedx.errors import ConfigError
from embedx.models.backbones import BackboneSpec, describe_backbone
from embedx.models.backbones.torchvision import backbone_names, weights_names
from tests.models.steps import steps_of

pytestmark = pytest.mark.usefixtures("one_thread")
HEADS = {"squeezenet1_1": "classifier.1", "shufflenet_v2_x0_5": "fc", "mobilenet_v3_small": "classifier.3"}
KNOWN = {
    "resnet50": 2048,
    "vit_b_16": 768,
    "mobilenet_v3_small": 1024,
    "squeezenet1_1": 512,
    "vgg16": 4096,
    "inception_v3": 2048,
    "googlenet": 1024,
    "densenet121": 1024,
    "swin_t": 768,
    "maxvit_t": 512,
}


def describe(backbone: str, **options: Any) -> BackboneSpec:
    options = {"weights": "random", **options}
    return describe_backbone(ExtractConfig(backbone=backbone, out=Path("store"), **options), download=False)


def reference(backbone: str, seed: int = 0) -> nn.Module:
    """Torchvision's own model, its classifier replaced by the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = models.get_model(backbone, weights=None)
    model.set_submodule(HEADS[backbone], nn.Identity())
    return model.eval()


def images(size: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("backbone", KNOWN)
def test_embeddings_are_what_the_classifier_would_see(backbone: str) -> None:
    assert describe(backbone).shapes == {"embeddings": (KNOWN[backbone],)}


def test_backbones_of_every_kind_are_listed() -> None:
    for module in (models, models.segmentation, models.detection, models.quantization):
        assert set(models.list_models(module=module)) < set(backbone_names())


def test_preprocessing_is_that_of_the_default_weights() -> None:
    steps = steps_of(describe("resnet50"))
    assert (steps.resize, steps.crop, steps.interpolation, steps.exif) == (232, 224, "bilinear", True)
    assert steps.mean == (0.485, 0.456, 0.406) and steps.std == (0.229, 0.224, 0.225)
    swin = steps_of(describe("swin_t", exif=False))
    assert (swin.resize, swin.interpolation, swin.exif) == (232, "bicubic", False)
    other = steps_of(describe("resnet50", weights="IMAGENET1K_V1"))
    assert (other.resize, other.crop) == (256, 224)


def test_another_image_size_keeps_the_share_that_is_cropped() -> None:
    steps = steps_of(describe("resnet50", image_size=112))
    assert (steps.resize, steps.crop) == (116, 112)


def test_an_unknown_backbone_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown backbone 'resnet5'; did you mean resnet50\?") as caught:
        describe("resnet5")
    assert "embedx backbones" in str(caught.value)


def test_weights_names_are_torchvisions() -> None:
    assert weights_names("resnet50") == ["IMAGENET1K_V1", "IMAGENET1K_V2"]


@pytest.mark.parametrize("backbone", HEADS)
def test_embeddings_are_what_torchvisions_model_gives_without_its_classifier(backbone: str) -> None:
    embedder = describe(backbone, image_size=64, seed=3).load()
    model = reference(backbone, seed=3)
    with torch.inference_mode():
        normalised = (images() - embedder.mean) / embedder.std
        outputs = embedder(images())
        assert torch.equal(outputs["embeddings"], model(normalised))
        by_preset = transforms.normalize(
            transforms.to_dtype(images(), torch.float32, scale=True), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        )
        torch.testing.assert_close(outputs["embeddings"], model(by_preset), rtol=1e-3, atol=1e-5)
    assert not embedder.training


def test_random_weights_follow_the_seed_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (next(describe("squeezenet1_1", seed=seed).load().backbone.parameters()) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_several_layers_are_stored_beside_the_embeddings() -> None:
    spec = describe("mobilenet_v3_small", image_size=64, layer=("features.12", "features.3"))
    outputs = spec.load()(images())
    assert set(spec.shapes) == {"embeddings", "features.12", "features.3"}
    assert {name: tuple(out.shape[1:]) for name, out in outputs.items()} == spec.shapes
    model = reference("mobilenet_v3_small")
    features: dict[str, torch.Tensor] = {}
    for number in (3, 12):
        model.get_submodule(f"features.{number}").register_forward_hook(
            lambda _, __, out, number=number: features.update({f"features.{number}": out.mean((2, 3))})
        )
    embedder = spec.load()
    features["embeddings"] = model((images() - embedder.mean) / embedder.std)
    for name, expected in features.items():
        torch.testing.assert_close(outputs[name], expected)


def test_layers_keep_their_shape_where_nothing_is_pooled() -> None:
    spec = describe("squeezenet1_1", image_size=64, layer=("features.4",), pool="none")
    assert spec.shapes == {"embeddings": (512,), "features.4": (128, 15, 15)}


def test_tokens_and_maps_of_transformers_are_pooled_over_their_places() -> None:
    assert describe("vit_b_16", layer=("encoder",), pool="cls").shapes["encoder"] == (768,)
    assert describe("vit_b_16", layer=("encoder",), pool="none").shapes["encoder"] == (197, 768)
    assert describe("swin_t", layer=("features.1",)).shapes["features.1"] == (96,)


def test_a_map_has_no_class_token_to_pool() -> None:
    with pytest.raises(ConfigError, match="--pool cls needs tokens"):
        describe("squeezenet1_1", layer=("features.4",), pool="cls")


def test_unknown_layers_are_reported_at_once_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        describe("resnet50", layer=("layer9", "layer4", "avgpoll"))
    assert len(caught.value.faults) == 2
    assert "unknown --layer 'layer9'; did you mean layer4? (`embedx layers resnet50` lists them)" in caught.value.faults
    assert "did you mean avgpool?" in str(caught.value)


def test_an_image_size_that_the_backbone_does_not_take_is_a_fault() -> None:
    with pytest.raises(ConfigError, match=r"vit_b_16 does not take images of 100x100: Input shape indivisible by"):
        describe("vit_b_16", image_size=100)
    with pytest.raises(ConfigError, match="inception_v3 does not take images of 32x32"):
        describe("inception_v3", image_size=32)


def test_a_vision_transformer_is_built_for_the_image_size_and_its_positions_resampled(tmp_path: Path) -> None:
    with torch.device("meta"):
        own = models.vit_b_32().state_dict()
    state = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in own.items()}  # a small file
    name = "encoder.pos_embedding"
    state[name] = torch.randn(own[name].shape)
    torch.save({"model": state}, tmp_path / "weights.pth")
    spec = describe("vit_b_32", weights="DEFAULT", checkpoint=tmp_path / "weights.pth", image_size=64)
    assert spec.architecture.weights.to_json()["position_embeddings"] == "7x7 to 2x2"
    with torch.random.fork_rng(devices=[]):
        loaded = spec.load().backbone.state_dict()[name]
    assert torch.equal(loaded, timm.layers.resample_abs_pos_embed(state[name], [2, 2]))
    plain = describe("vit_b_32", weights="DEFAULT", checkpoint=tmp_path / "weights.pth")
    assert "position_embeddings" not in plain.architecture.weights.to_json()


def test_a_maxvit_is_built_for_the_image_size() -> None:
    assert describe("maxvit_t", weights="random", image_size=448).shapes == {"embeddings": (512,)}
    with pytest.raises(ConfigError, match=r"maxvit_t does not take images of 64x64: .*not divisible by partition"):
        describe("maxvit_t", image_size=64)


@pytest.mark.parametrize(("backbone", "layer"), [("resnet18", "fc"), ("mobilenet_v3_small", "classifier")])
def test_a_layer_that_is_the_embeddings_themselves_is_a_fault(backbone: str, layer: str) -> None:
    with pytest.raises(ConfigError, match=f"--layer {layer} gives the embeddings themselves"):
        describe(backbone, layer=(layer,))


def test_the_embeddings_come_first() -> None:
    assert next(iter(describe("squeezenet1_1", layer=("features.4",)).shapes)) == "embeddings"


@pytest.mark.parametrize(
    ("backbone", "layer"),
    [("shufflenet_v2_x0_5", "stage2.1.chunk"), ("vit_b_16", "encoder.layers.encoder_layer_3.self_attention")],
)
def test_a_layer_that_gives_no_tensor_is_a_fault(backbone: str, layer: str) -> None:
    with pytest.raises(ConfigError, match=layer):
        describe(backbone, layer=(layer,))


@pytest.mark.parametrize(
    ("backbone", "layer", "channels"),
    [("swin_t", "features.0.0", 96), ("swin_t", "norm", 768), ("convnext_tiny", "features.1.0.block.2", 96)],
)
def test_a_map_is_pooled_over_its_places_wherever_its_channels_are(backbone: str, layer: str, channels: int) -> None:
    assert describe(backbone, layer=(layer,)).shapes[layer] == (channels,)
