from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import embedx
from embedx.config import ExtractConfig
from embedx.errors import CheckpointError, ConfigError
from embedx.models.backbones import BackboneSpec, describe_backbone, describe_layers
from embedx.models.backbones.base import BackboneOptions
from embedx.models.backbones.factory import KIND, _preprocessing
from embedx.recipe import Preprocessing
from embedx.run.extract import extract
from tests.models.backbones.programs import HALVES, SIZE, STEPS, small
from tests.models.steps import steps_of

pytestmark = pytest.mark.usefixtures("one_thread")
MODULE = "tests.models.backbones.programs"


def describe(factory: str = "build", **settings: Any) -> BackboneSpec:
    settings = {"out": Path("store"), **settings}
    return describe_backbone(ExtractConfig(backbone=f"{MODULE}:{factory}", **settings))


def images() -> torch.Tensor:
    pixels = torch.randint(0, 256, (4, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1))
    return pixels.to(torch.uint8)


@pytest.mark.parametrize(
    ("name", "is_factory"),
    [
        ("mine:build", True),
        ("my.package.models:Build", True),
        ("resnet50", False),
        ("a/b:c", False),
        ("C:\\x.pt2", False),
    ],
)
def test_factories_are_told_by_their_form(name: str, is_factory: bool) -> None:
    assert KIND.matches(name) is is_factory


@pytest.mark.parametrize("arguments", [(), ("as_dict=true",), ("told=true", "batch=-1")])
def test_rows_are_what_the_module_gives(arguments: tuple[str, ...]) -> None:
    spec = describe(backbone_arg=arguments)
    assert spec.shapes == {"embeddings": (6,)}
    with torch.inference_mode():
        rows = spec.load()(images())["embeddings"]
        expected = small()((images() / 255 - 0.5) / 0.5)
    assert (rows - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_module_tells_its_preprocessing_or_it_is_asked_for() -> None:
    steps = steps_of(describe())
    assert (steps.resize, steps.crop, steps.interpolation, steps.mean) == (36, SIZE, "bicubic", HALVES)
    assert steps_of(describe(resize=40)).resize == 40
    with pytest.raises(ConfigError, match=r"the preprocessing of .*:build is unknown; give --image-size and --me"):
        describe(backbone_arg=("told=false",))
    assert steps_of(describe(backbone_arg=("told=false",), **STEPS)).resize == SIZE


def test_the_recipe_tells_weights_and_arguments() -> None:
    spec, same = describe(backbone_arg=("told=true",)), describe()
    assert spec.architecture.arguments == {"told": True}
    assert spec.architecture.weights == same.architecture.weights != describe(seed=1).architecture.weights
    assert (
        spec.architecture.weights.to_json().keys() == {"name", "sha256"}
        and len(spec.architecture.weights.sha256 or "") == 64
    )


def test_a_checkpoint_fills_it(tmp_path: Path) -> None:
    other = describe(seed=5).load().backbone.state_dict()
    torch.save(other, tmp_path / "weights.pth")
    spec = describe(checkpoint=tmp_path / "weights.pth")
    assert spec.architecture.weights.name == "checkpoint"
    assert all(torch.equal(tensor, other[name]) for name, tensor in spec.load().backbone.state_dict().items())
    del other["head.bias"]
    torch.save(other, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"head\.bias"):
        describe(checkpoint=tmp_path / "weights.pth").load()


@pytest.mark.parametrize("factory", ["build", "untraceable"])
def test_layers_are_its_modules(factory: str) -> None:
    spec = describe(factory, layer=("conv.1", "conv"), pool="none", **STEPS)
    assert spec.shapes == {"embeddings": (6,), "conv.1": (8, 8, 8), "conv": (8, 8, 8)}
    model = small()
    with torch.inference_mode():
        outputs = spec.load()(images())
        before_relu = model.conv[:2]((images() / 255 - 0.5) / 0.25)
    torch.testing.assert_close(outputs["conv.1"], before_relu, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs["conv"], before_relu.relu(), rtol=1e-4, atol=1e-5)
    listed = describe_layers(BackboneOptions(backbone=f"{MODULE}:{factory}", image_size=SIZE))
    assert list(listed) == ["conv.0", "conv.1", "conv.2", "conv", "head"] and listed["conv"] == (8, 8, 8)


@pytest.mark.parametrize(
    ("backbone", "settings", "message"),
    [
        ("no_such_module:build", {}, "no_such_module can't be imported .ModuleNotFoundError: No module named"),
        (f"{MODULE}:biuld", {}, r"unknown factory 'biuld'; did you mean build\? .in tests"),
        (f"{MODULE}:build", {"backbone_arg": ("size=3",)}, "unexpected keyword argument 'size'; give its arguments"),
        (f"{MODULE}:build", {"backbone_arg": ("told",)}, "--backbone-arg told: give each argument once, as key=value"),
        (f"{MODULE}:build", {"backbone_arg": ("a=1", "a=2")}, "--backbone-arg a=2: give each argument once"),
        (f"{MODULE}:build", {"weights": "random"}, "--weights random: the weights of .* are the factory's"),
        (f"{MODULE}:text", {}, r"the factory returned a str, no nn\.Module"),
        (f"{MODULE}:failing", {}, r"the factory raised LookupError: no such thing .--debug shows where"),
        (f"{MODULE}:ill_told", {}, "its attribute `preprocessing` lacks 'crop'; it needs crop, mean and std"),
        (f"{MODULE}:build", {"image_size": 40}, "does not take images of 40x40: shape"),
        ("resnet18", {"backbone_arg": ("a=1",), "weights": "random"}, "--backbone-arg is for backbones given as"),
    ],
)
def test_what_can_not_be_had_is_one_clear_message(backbone: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        describe_backbone(ExtractConfig(backbone=backbone, out=Path("store"), **settings))


def test_code_of_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ours.py").write_text(
        "from torch import nn\n"
        "def build(width, name):\n"
        "    assert name == 'plain text'\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    monkeypatch.chdir(tmp_path)
    arguments = ("width=5", "name=plain text")
    extract(ExtractConfig(backbone="ours:build", backbone_arg=arguments, workers=0, out=tmp_path / "store", **STEPS))
    store = embedx.open(tmp_path / "store")
    assert store.recipe["backbone_args"] == {"width": 5, "name": "plain text"}
    assert store.load("val").embeddings.shape[1] == 5


def told(steps: Any) -> Preprocessing | None:
    """The preprocessing that is read of a module with this attribute."""
    module = nn.Identity()
    module.preprocessing = steps
    return _preprocessing("mine:build", module)


FULL = {"resize": (16, 16), "crop": 16, "interpolation": "bilinear", "mean": (0.0,) * 3, "std": (1.0,) * 3}


@pytest.mark.parametrize(
    ("steps", "read"),
    [
        (FULL, Preprocessing((16, 16), 16, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
        ({"crop": 8, "mean": 0.5, "std": "1/2"}, Preprocessing(8, 8, "bilinear", (0.5,) * 3, (0.5,) * 3)),
        (
            {**FULL, "crop": (16, 16), "mean": torch.zeros(3), "std": np.ones(3), "interpolation": "bicubic"},
            Preprocessing((16, 16), 16, "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ),
    ],
)
def test_a_module_declares_its_preprocessing(steps: Any, read: Preprocessing) -> None:
    assert told(steps) == read


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"interpolation": "nearest"}, "interpolation: 'nearest' is none of bilinear, bicubic"),
        ({"mean": (124, 116, 104)}, "mean: (124, 116, 104) is not from 0 to 1; divide numbers of 0 to 255 by 255"),
        ({"mean": (0.5, 0.5)}, "mean: (0.5, 0.5) is not three numbers"),
        ({"std": (1, 1, 0)}, "std: (1, 1, 0) is not above 0"),
        ({"crop": (16, 8)}, "crop: (16, 8) is no square; embedx gives square images"),
        ({"crop": 16.5}, "crop: 16.5 is not a size"),
        ({"resize": "large"}, "resize: 'large' is not a size"),
        ({"resise": 3}, "unknown step 'resise'; did you mean resize?"),
    ],
)
def test_each_fault_of_a_declared_preprocessing_is_named(change: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        told(FULL | change)
    assert caught.value.faults[0].startswith(f"--backbone mine:build: its attribute `preprocessing`: {fault}")
    with pytest.raises(ConfigError) as caught:
        told({"crop": 0, "mean": "x", **change})
    assert len(caught.value.faults) >= 3
    with pytest.raises(ConfigError, match="is a list; give a dict of resize, crop, interpolation, mean, std"):
        told([224])
