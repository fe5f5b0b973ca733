from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models
from torchvision.transforms.v2 import functional as transforms

from embedx.config import ExtractConfig
from embedx.data.decoding.images import preprocess
from embedx.errors import CheckpointError, ConfigError
from embedx.models.backbones import BackboneSpec, describe_backbone, describe_layers, quantized
from embedx.models.backbones.base import BackboneOptions
from embedx.models.runtimes.eager import EagerRuntime
from tests.models.steps import steps_of

BACKBONE = "quantized_shufflenet_v2_x0_5"
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="no engine fbgemm"),
]


def describe(backbone: str = BACKBONE, **settings: Any) -> BackboneSpec:
    settings = {"weights": "random", "out": Path("store"), "device": "cpu", "image_size": 64, **settings}
    return describe_backbone(ExtractConfig(backbone=backbone, **settings), download=False)


def images() -> torch.Tensor:
    pixels = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    return pixels.to(torch.uint8)


def test_rows_are_those_of_torchvision_s_own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    member = models.get_model_weights(BACKBONE)["DEFAULT"]
    path = tmp_path / "hub/checkpoints" / member.url.rsplit("/", 1)[-1]
    path.parent.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = models.get_model(BACKBONE, weights=None, quantize=True).eval()
    torch.save(model.state_dict(), path)
    spec = describe(weights="DEFAULT")
    embedder = spec.load()
    rows = EagerRuntime(embedder, torch.device("cpu"), "fp32")(images())["embeddings"]
    model.fc = nn.Identity()
    with torch.inference_mode():
        expected = model((images() - embedder.mean) / embedder.std)
    assert rows.shape == expected.shape == (2, 1024)
    assert (rows - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert spec.architecture.weights.name.endswith("IMAGENET1K_FBGEMM_V1") and spec.architecture.weights.sha256


def test_preprocessing_is_torchvision_s_own(photos: Path) -> None:
    spec = describe(image_size=None)
    picture = Image.open(photos / "astronaut.png").convert("RGB")
    by_torchvision = models.get_model_weights(BACKBONE)["DEFAULT"].transforms()(picture)[None]
    embedder = spec.load()
    pixels = preprocess(transforms.pil_to_tensor(picture), steps_of(spec))[None]
    with torch.inference_mode():
        rows, expected = embedder(pixels)["embeddings"], embedder.backbone(by_torchvision)
    assert nn.functional.cosine_similarity(rows, expected) >= 0.999


def test_random_weights_follow_the_seed() -> None:
    one, same, other = (describe(seed=seed).load()(images())["embeddings"] for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_its_layers_are_its_modules_whose_outputs_are_dequantised() -> None:
    spec = describe(layer=("stage4",))
    assert spec.shapes == {"embeddings": (1024,), "stage4": (192,)}
    assert describe_layers(BackboneOptions(backbone="quantized_resnet18"))["layer4"] == (512, 7, 7)
    rows = spec.load()(images())["stage4"]
    assert rows.dtype == torch.float32 and rows.abs().max() > 0


@pytest.mark.parametrize("content", [{}, {"conv1.weight": torch.zeros(3)}, b"text"])
def test_weights_that_do_not_fit_are_a_fault(tmp_path: Path, content: Any) -> None:
    if isinstance(content, bytes):
        (tmp_path / "weights.pth").write_bytes(content)
    else:
        torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="does not fit quantized_shufflenet_v2_x0_5, or can't be read"):
        describe(weights="DEFAULT", checkpoint=tmp_path / "weights.pth").load()


def test_what_it_can_not_do_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", ["none"])
    with pytest.raises(ConfigError) as caught:
        describe(device="cuda", precision="bf16")
    assert len(caught.value.faults) == 3
    for part in ("--device cuda: .* runs on CPUs alone", "needs the engine fbgemm; .* has none", "--precision bf16"):
        assert caught.match(part)


def test_an_unknown_one_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"did you mean quantized_resnet50\?"):
        describe("quantized_resnet5")
