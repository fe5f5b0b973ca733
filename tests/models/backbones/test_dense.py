from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms.v2 import functional as transforms

from embedx.config import ExtractConfig
from embedx.data.decoding.images import preprocess
from embedx.errors import CheckpointError
from embedx.models.backbones import BackboneSpec, describe_backbone
from tests.models.steps import steps_of

pytestmark = pytest.mark.usefixtures("one_thread")
SEGMENTATION = models.list_models(module=models.segmentation)
SMALLEST = {"lraspp_mobilenet_v3_large": "backbone", "fasterrcnn_mobilenet_v3_large_320_fpn": "backbone.body"}


def describe(backbone: str, **settings: Any) -> BackboneSpec:
    settings = {"weights": "random", "out": Path("store"), **settings}
    return describe_backbone(ExtractConfig(backbone=backbone, **settings), download=False)


def whole(backbone: str, **options: Any) -> Any:
    options = {"weights": None, "weights_backbone": None, **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = models.get_model(backbone, **options)
    return model.eval()


def deepest(model: nn.Module, body: str, images: Tensor) -> Tensor:
    """The last map of torchvision's own body, pooled."""
    with torch.no_grad():
        *_, last = model.get_submodule(body)(images).values()
    pooled: Tensor = last.mean((2, 3))
    return pooled


def images(size: int) -> Tensor:
    pixels = torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(1))
    return pixels.to(torch.uint8)


def assert_same(rows: Tensor, expected: Tensor) -> None:
    assert rows.shape == expected.shape
    assert (rows - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("backbone", "dimension"),
    [
        ("fcn_resnet50", 2048),
        ("ssd300_vgg16", 256),
        ("ssdlite320_mobilenet_v3_large", 128),
        ("fcos_resnet50_fpn", 2048),
    ],
)
def test_embeddings_are_of_the_deepest_map(backbone: str, dimension: int) -> None:
    assert describe(backbone, image_size=320).shapes == {"embeddings": (dimension,)}


@pytest.mark.parametrize("backbone", SMALLEST)
def test_rows_are_those_of_torchvision_s_own_body(tmp_path: Path, backbone: str) -> None:
    model = whole(backbone)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    embedder = describe(backbone, weights="DEFAULT", checkpoint=tmp_path / "weights.pth", image_size=64).load()
    with torch.no_grad():
        rows = embedder(images(64))["embeddings"]
    normalised = transforms.normalize(images(64) / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert_same(rows, deepest(model, SMALLEST[backbone], normalised))


def test_weights_of_another_model_do_not_fit(tmp_path: Path) -> None:
    torch.save(models.squeezenet1_1().state_dict(), tmp_path / "weights.pth")
    backbone = "fasterrcnn_mobilenet_v3_large_320_fpn"
    with pytest.raises(CheckpointError, match="none of the backbone's tensors"):
        describe(backbone, weights="DEFAULT", checkpoint=tmp_path / "weights.pth").load()


def test_pretrained_detection_weights_are_used_as_torchvision_uses_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COCO_V1 has variances to which torchvision adds nothing; here they are so small that it would show."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = whole("retinanet_resnet50_fpn")
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    for name, value in state.items():
        if name.endswith("running_var"):
            value.fill_(1e-2)
        elif ".bn" in name and name.endswith("weight"):
            value.fill_(0.05)
    member = models.detection.RetinaNet_ResNet50_FPN_Weights.COCO_V1
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(state, tmp_path / "hub/checkpoints" / member.url.rsplit("/", 1)[-1])
    spec = describe("retinanet_resnet50_fpn", weights="DEFAULT", image_size=64)
    assert spec.architecture.weights.name == "RetinaNet_ResNet50_FPN_Weights.COCO_V1"
    embedder = spec.load()
    with torch.no_grad():
        rows = embedder(images(64))["embeddings"]
    expected = models.get_model("retinanet_resnet50_fpn", weights=member, weights_backbone=None).eval()
    assert_same(rows, deepest(expected, "backbone.body", (images(64) - embedder.mean) / embedder.std))


@pytest.mark.parametrize("backbone", SMALLEST)
def test_squares_are_preprocessed_as_torchvision_does_it(backbone: str, photos: Path) -> None:
    spec = describe(backbone)
    picture = Image.open(photos / "astronaut.png").convert("RGB")
    assert picture.width == picture.height
    if backbone in SEGMENTATION:
        by_torchvision = models.get_model_weights(backbone).DEFAULT.transforms()(picture)[None]
    else:
        prepared, _ = whole(backbone).transform([transforms.to_dtype(transforms.pil_to_tensor(picture), scale=True)])
        by_torchvision = prepared.tensors
    pixels = preprocess(transforms.pil_to_tensor(picture), steps_of(spec))[None]
    embedder = spec.load()
    ours = (pixels - embedder.mean) / embedder.std
    assert ours.shape == by_torchvision.shape
    with torch.no_grad():
        rows = embedder(pixels)["embeddings"]
    reference = deepest(whole(backbone), SMALLEST[backbone], by_torchvision)
    assert nn.functional.cosine_similarity(rows, reference) >= 0.999


def test_preprocessing_is_the_model_s() -> None:
    steps = steps_of(describe("ssd300_vgg16"))
    assert (steps.resize, steps.crop, steps.mean[0]) == (300, 300, 0.48235)
    assert steps_of(describe("keypointrcnn_resnet50_fpn")).crop == 800
    assert steps_of(describe("fcn_resnet50")).crop == 520
