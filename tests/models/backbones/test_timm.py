from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.data
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import embedx
from embedx.config import ExtractConfig
from embedx.data.decoding.images import decode, preprocess
from embedx.errors import CheckpointError, ConfigError
from embedx.models.backbones import BackboneSpec, describe_backbone
from embedx.run.extract import extract
from embedx.run.prepare import prepare
from tests.models.steps import steps_of

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("astronaut.png", "coffee.png", "rocket.jpg", "chelsea.png")


def config(backbone: str, **options: Any) -> ExtractConfig:
    defaults: dict[str, Any] = {"weights": "random", "out": Path("store"), "workers": 0, "batch_size": 2}
    return ExtractConfig(backbone=backbone, **defaults | options)


def describe(backbone: str, **options: Any) -> BackboneSpec:
    return describe_backbone(config(backbone, **options), download=False)


def reference(name: str, seed: int = 0, **options: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(name, pretrained=False, num_classes=0, **options).eval()


def cached_weights(cache: Path, repository: str, weights: dict[str, Tensor]) -> Path:
    """Puts weights where the Hugging Face cache would have them."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    file = folder / "snapshots" / ("0" * 40) / "model.safetensors"
    file.parent.mkdir(parents=True)
    save_file(weights, file)
    return file


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "cache"


@pytest.fixture
def images(photos: Path, tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in NAMES:
        (tmp_path / "images" / name).symlink_to(photos / name)
    return tmp_path / "images"


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "resnet18.tv_in1k"])
def test_rows_equal_timms_own_forward_pass(name: str, images: Path, tmp_path: Path) -> None:
    settings = config(f"timm:{name}", seed=3, data=(str(images),), out=tmp_path / "store")
    extract(settings)
    rows = embedx.open(tmp_path / "store").load("all", framework="torch")
    assert embedx.open(tmp_path / "store").manifest.environment.packages["timm"] == timm.__version__
    steps = steps_of(describe(f"timm:{name}"))
    pixels = torch.stack([preprocess(decode((images / key).read_bytes()), steps) for key in rows.keys])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (steps.mean, steps.std))
    model = reference(name, seed=3)
    with torch.inference_mode():
        expected = model((pixels / 255 - mean) / std)
    assert rows.embeddings.shape == expected.shape == (4, model.num_features)
    assert (rows.embeddings - expected).abs().max() <= 1e-5 * expected.abs().max()

    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        theirs = model(torch.stack([transform(Image.open(images / key).convert("RGB")) for key in rows.keys]))
    assert nn.functional.cosine_similarity(rows.embeddings, theirs).min() >= 0.999


@pytest.mark.parametrize(
    "name", ["resnet18", "test_vit", "dm_nfnet_f0", "vit_base_patch16_clip_224", "efficientnet_b5"]
)
def test_the_preprocessing_is_timms(name: str, photos: Path) -> None:
    """Of models with every way to resize and crop that timm has for square images."""
    steps = steps_of(describe(f"timm:{name}"))
    settings = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    theirs = timm.data.create_transform(**settings)(Image.open(photos / "coffee.png").convert("RGB"))
    pixels = preprocess(decode((photos / "coffee.png").read_bytes()), steps)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (steps.mean, steps.std))
    ours = (pixels / 255 - mean) / std
    assert ours.shape == theirs.shape
    assert nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) >= 0.999


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not timm.is_model(name), reason=f"this timm has no {name}")


@needs("vit_base_patch16_sapiens2")
def test_images_that_are_not_square_are_a_fault() -> None:
    with pytest.raises(ConfigError, match=r"takes images of 1024x768; embedx feeds square ones only"):
        describe("timm:vit_base_patch16_sapiens2")


@needs("deepseek_vit_412m")
def test_preprocessing_that_embedx_has_not_is_a_fault() -> None:
    with pytest.raises(ConfigError, match="wants images with a border"):
        describe("timm:deepseek_vit_412m")


def test_names_and_tags_that_timm_does_not_know_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown backbone 'timm:resnet1'; names that begin so: timm:resnet101, "):
        describe("timm:resnet1")
    with pytest.raises(ConfigError, match=r"did you mean timm:resnet18.a1_in1k\? \(or timm:resnet18\)"):
        describe("timm:resnet18.a1_in")
    with pytest.raises(ConfigError, match=r"give --backbone timm:resnet18.TAG, where TAG is one of a1_in1k, a2_in1k"):
        describe("timm:resnet18", weights="a1_in1k")
    with pytest.raises(ConfigError, match="timm has no weights for timm:resnetaa34d; load"):
        describe("timm:resnetaa34d", weights="DEFAULT")


def test_a_vision_transformer_is_built_for_the_image_size() -> None:
    spec = describe("timm:test_vit", image_size=96, seed=1)
    assert steps_of(spec).crop == 96
    pixels = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    embedder = spec.load()
    with torch.inference_mode():
        expected = reference("test_vit", seed=1, img_size=96)((pixels - embedder.mean) / embedder.std)
        assert torch.equal(embedder(pixels)["embeddings"], expected)


@pytest.mark.parametrize(
    ("name", "head"),
    [("test_resnet", "fc"), ("test_vit", "head"), ("levit_128s", "head"), ("convformer_s18", "head.fc")],
)
def test_a_checkpoint_may_have_the_classifier(name: str, head: str, tmp_path: Path) -> None:
    model = timm.create_model(name, pretrained=False)
    assert any(tensor.startswith(f"{head}.") for tensor in model.state_dict())
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    loaded = describe(f"timm:{name}", weights="DEFAULT", checkpoint=tmp_path / "weights.pth").load().backbone
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert not any(tensor.startswith(f"{head}.") for tensor in loaded.state_dict())


def test_a_model_that_runs_a_part_of_itself_to_be_built_is_described() -> None:
    assert describe("timm:vit_tiny_r_s16_p8_224").shapes == {"embeddings": (192,)}


@needs("gemma4_vit_167m_enc")
def test_tokens_that_timm_does_not_pool_are_pooled() -> None:
    assert describe("timm:gemma4_vit_167m_enc").shapes == {"embeddings": (768,)}


def test_layers_are_stored_beside_the_embeddings() -> None:
    assert describe("timm:test_resnet", layer=("layer2",)).shapes == {"embeddings": (96,), "layer2": (48,)}


def test_layers_of_what_torch_fx_can_not_trace_are_stored_too() -> None:
    spec = describe("timm:test_vit", layer=("blocks.1",), pool="cls")
    model = reference("test_vit")
    kept: list[Tensor] = []
    model.blocks[1].register_forward_hook(lambda module, inputs, output: kept.append(output[:, 0]))
    pixels = torch.randint(0, 256, (2, 3, steps_of(spec).crop, steps_of(spec).crop), dtype=torch.uint8)
    with torch.inference_mode():
        embedder = spec.load()
        rows = embedder(pixels)
        expected = model((pixels - embedder.mean) / embedder.std)
    torch.testing.assert_close(rows["embeddings"], expected)
    torch.testing.assert_close(rows["blocks.1"], kept[0])


def test_pretrained_weights_are_those_in_the_cache(cache: Path) -> None:
    model = timm.create_model("test_vit", pretrained=False)
    file = cached_weights(cache, "timm/test_vit.r160_in1k", model.state_dict())
    spec = describe("timm:test_vit", weights="DEFAULT")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert spec.architecture.weights.to_json() == {"name": "timm/test_vit.r160_in1k", "sha256": sha256}
    loaded = spec.load().backbone.state_dict()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.items())
    resized = describe("timm:test_vit", weights="DEFAULT", image_size=96).load().backbone.state_dict()
    assert resized["pos_embed"].shape == (1, 37, 64)  # timm interpolates the positions
    assert torch.equal(resized["cls_token"], model.state_dict()["cls_token"])

    save_file({"other": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match=r"is not timm/test_vit.r160_in1k; it lacks \d+ tensors"):
        describe("timm:test_vit", weights="DEFAULT").load()
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=r"model.safetensors: timm can't load it as timm/test_vit.r160_in1k"):
        describe("timm:test_vit", weights="DEFAULT").load()


def test_weights_that_cant_be_had_are_an_error_within_seconds(cache: Path) -> None:
    assert describe("timm:test_vit", weights="DEFAULT").architecture.weights.to_json()["sha256"] == "not in the cache"
    begun = time.monotonic()
    with pytest.raises(ConfigError, match="can't be downloaded") as caught:
        prepare(config("timm:test_vit", weights="DEFAULT", out=cache / "store"))
    assert time.monotonic() - begun < 15
    for advice in (str(cache), "hf download timm/test_vit.r160_in1k", "--checkpoint FILE", "--weights random"):
        assert advice in str(caught.value)
    with pytest.raises(CheckpointError, match=r"legacy_seresnet18: put https://.*seresnet18-4bb0ce65.pth at"):
        describe_backbone(config("timm:legacy_seresnet18", weights="DEFAULT"))


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"--backbone timm:resnet18 needs timm: pip install 'embedx\[timm\]'"):
        describe("timm:resnet18")
