from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from embedx.config import ExtractConfig
from embedx.errors import ConfigError
from embedx.models.backbones import describe_backbone, describe_layers
from embedx.models.backbones.base import BackboneOptions
from embedx.models.layers import HookedLayers, TracedLayers, layer_faults, layer_shapes, with_layers
from embedx.names import EMBEDDINGS

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Branching(nn.Module):
    """torch.fx can't trace it: it looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 8, 8)
        self.relu = nn.ReLU(inplace=True)
        self.unused = nn.Linear(2, 2)
        self.pair = Pair()
        self.lonely = Text()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.relu(self.first(images))
        self.lonely(maps)
        maps = self.relu(self.pair(maps)[0] if maps.sum() >= 0 else maps)
        return maps.mean((2, 3))


class Pair(nn.Module):
    def forward(self, maps: Tensor) -> Any:
        return maps + 1, None


class Text(nn.Module):
    def forward(self, maps: Tensor) -> str:
        return "text"


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = models.resnet18()
    model.fc = nn.Identity()
    return model.eval()


def by_hooks(model: nn.Module, *names: str) -> dict[str, Tensor]:
    """What modules give, copied at once."""
    kept: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: kept.update({name: out.clone()}))
        for name in names
    ]
    model(IMAGES)
    for handle in handles:
        handle.remove()
    return kept


@torch.no_grad()
def test_a_traced_layer_gives_what_its_module_gives_whatever_is_done_with_it_next(resnet: nn.Module) -> None:
    names = ("bn1", "layer1", "layer1.1", "layer2.0.bn2", "avgpool")
    traced = with_layers(resnet, names)
    assert isinstance(traced, TracedLayers)
    outputs = traced(IMAGES)
    assert list(outputs) == [EMBEDDINGS, *names]
    torch.testing.assert_close(outputs.pop(EMBEDDINGS), resnet(IMAGES))
    expected = by_hooks(resnet, *names)
    for name, output in outputs.items():
        torch.testing.assert_close(output, expected[name], msg=name)


@torch.no_grad()
def test_of_what_can_not_be_traced_the_modules_are_layers() -> None:
    model = Branching().eval()
    hooked = with_layers(model, ("first", "pair", "relu"))
    assert isinstance(hooked, HookedLayers)
    outputs = hooked(IMAGES)
    first = model.first(IMAGES)
    torch.testing.assert_close(outputs["first"], first)
    torch.testing.assert_close(outputs["pair"], first.relu() + 1)
    torch.testing.assert_close(outputs["relu"], outputs["pair"])
    torch.testing.assert_close(outputs[EMBEDDINGS], outputs["pair"].mean((2, 3)))


def test_layers_are_listed_in_order_with_their_shapes(resnet: nn.Module) -> None:
    shapes = layer_shapes(resnet.to("meta"), IMAGES.to("meta"))
    assert next(iter(shapes)) == "conv1" and shapes["layer4"] == (512, 2, 2)
    names = list(shapes)
    assert names.index("layer1.0.bn2") < names.index("layer1.0") < names.index("layer1.1") < names.index("layer1")
    assert "fc" not in names and names[-1] == "flatten"
    assert layer_faults(resnet, "resnet18", names) == []


def test_of_modules_those_are_listed_that_run_and_give_a_tensor() -> None:
    assert layer_shapes(Branching().eval(), IMAGES) == {
        "first": (4, 8, 8),
        "pair": (4, 8, 8),
        "relu": (4, 8, 8),
    }


def test_faults_name_the_nearest_layer(resnet: nn.Module) -> None:
    assert layer_faults(Branching(), "mine", ("frist", "first", "index")) == [
        "unknown --layer 'frist'; did you mean first? (`embedx layers mine` lists them)",
        "unknown --layer 'index'; valid: first, lonely, pair, relu, unused (`embedx layers mine` lists them)",
    ]
    assert layer_faults(resnet, "resnet18", ("fc",)) == [
        "--layer fc gives the embeddings themselves, which are stored anyway; leave it out"
    ]


def test_a_module_that_is_not_run_is_a_fault() -> None:
    with pytest.raises(ConfigError, match="--layer unused is not run"):
        with_layers(Branching(), ("unused",))(IMAGES)


def test_without_layers_a_backbone_is_left_as_it_is(resnet: nn.Module) -> None:
    assert with_layers(resnet, ()) is resnet and layer_faults(resnet, "resnet18", ()) == []


def test_a_backbone_s_layers_need_no_weights() -> None:
    listed = describe_layers(BackboneOptions(backbone="vit_b_16"))
    assert listed["encoder.layers.encoder_layer_11"] == (197, 768)
    smaller = describe_layers(BackboneOptions(backbone="resnet18", image_size=64))
    assert smaller["layer4"] == (512, 2, 2)
    other = describe_layers(BackboneOptions(backbone="vit_b_16", image_size=160))
    assert other["encoder.layers.encoder_layer_11"] == (101, 768)
    with pytest.raises(ConfigError, match="vit_b_16 does not take images of 100x100"):
        describe_layers(BackboneOptions(backbone="vit_b_16", image_size=100))


FIRST, LAST = 1, 3
"""The dimension of the channels in [B, C, H, W] and in [B, H, W, C]."""


@pytest.mark.parametrize(
    ("backbone", "layer", "channels", "where", "sizes"),
    [
        ("resnet18", "layer1", 64, FIRST, (64, 256)),
        ("resnet18", "layer3", 256, FIRST, (64, 4096)),
        ("convnext_tiny", "features.1.0.block.2", 96, LAST, (64, 384)),
        ("swin_t", "features.1", 96, LAST, (64, 384)),
        ("mobilenet_v3_small", "features.0", 16, FIRST, (64, 32)),
        ("timm:swin_tiny_patch4_window7_224", "layers.0", 96, LAST, (384,)),
    ],
)
def test_where_channels_stand_is_known_also_where_there_are_as_many_rows(
    backbone: str, layer: str, channels: int, where: int, sizes: tuple[int, ...]
) -> None:
    """By shapes alone; at the second size a map is a cube, whose shape shows nothing."""
    for size in sizes:
        options: dict[str, Any] = {"backbone": backbone, "out": Path("s"), "weights": "random", "image_size": size}
        spec = describe_backbone(ExtractConfig(layer=(layer,), pool="max", **options))
        assert spec.shapes[layer] == (channels,)
    assert spec.channels == {layer: where}


def test_a_cube_is_pooled_over_its_rows_and_columns(resnet: nn.Module) -> None:
    config = ExtractConfig(backbone="resnet18", out=Path("s"), weights="random", layer=("layer1",), image_size=256)
    images = torch.randint(0, 256, (1, 3, 256, 256), dtype=torch.uint8)
    embedder = describe_backbone(config).load()
    with torch.no_grad():
        maps = embedder.features(images)["layer1"]
        assert maps.shape == (1, 64, 64, 64)
        torch.testing.assert_close(embedder(images)["layer1"], maps.mean((2, 3)))
