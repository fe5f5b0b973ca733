from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor

import embedx
from embedx.config import ExtractConfig
from embedx.data.decoding.images import decode, preprocess
from embedx.errors import CheckpointError, ConfigError
from embedx.models.backbones import BackboneSpec, describe_backbone, describe_layers
from embedx.models.backbones.base import BackboneOptions
from tests.models.backbones.test_huggingface import save as save_of_transformers
from tests.models.backbones.test_timm import cached_weights
from tests.models.backbones.text_image import OPEN_CLIP, OPEN_CLIP_STEPS, SETTINGS, save_open_clip
from tests.models.steps import steps_of

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("astronaut.png", "coffee.png", "rocket.jpg", "chelsea.png")
TOWERS: dict[str, dict[str, Any]] = {
    "vit": {},
    "vit, custom text": {"custom_text": True},
    "resnet": {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}},
    "timm": {
        "vision_cfg": {"timm_model_name": "test_vit", "image_size": 32, "timm_pool": "token", "timm_proj": "linear"},
        "custom_text": True,
    },
    "coca": {
        "vision_cfg": {**OPEN_CLIP["vision_cfg"], "attentional_pool": True, "output_tokens": True,  # type: ignore[dict-item]
                       "attn_pooler_heads": 2},
        "text_cfg": {**OPEN_CLIP["text_cfg"], "embed_cls": True, "output_tokens": True},  # type: ignore[dict-item]
        "multimodal_cfg": {"context_length": 16, "vocab_size": 99, "width": 32, "heads": 2, "layers": 1},
        "custom_text": True,
    },
}  # fmt: skip


def describe(backbone: str | Path, **options: Any) -> BackboneSpec:
    config = ExtractConfig(backbone=f"openclip:{backbone}", out=Path("store"), **options)
    return describe_backbone(config, download=False)


def own_features(model: Any, spec: BackboneSpec, pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (steps_of(spec).mean, steps_of(spec).std))
    with torch.inference_mode():
        return model.encode_image((pixels / 255 - mean) / std)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "cache"


@pytest.mark.parametrize("tower", TOWERS)
def test_rows_equal_open_clips_own_forward_pass(tower: str, photos: Path, tmp_path: Path) -> None:
    model = save_open_clip(tmp_path / "model", **TOWERS[tower])
    backbone = f"openclip:{tmp_path / 'model'}"
    images = [photos / name for name in NAMES]
    store = embedx.extract(images, backbone=backbone, out=tmp_path / "store", progress=False, workers=0, batch_size=2)
    rows = store.load("all", framework="torch")
    spec = describe(tmp_path / "model")
    pixels = torch.stack([preprocess(decode(Path(key).read_bytes()), steps_of(spec)) for key in rows.keys])
    expected = own_features(model, spec, pixels)
    assert rows.embeddings.shape == expected.shape == (4, 24)
    assert (rows.embeddings - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert store.recipe["weights"] == {
        "name": backbone,
        "sha256": hashlib.sha256((tmp_path / "model" / "open_clip_model.safetensors").read_bytes()).hexdigest(),
    }
    assert "open_clip_torch" in store.manifest.environment.to_json()

    embedder = spec.load()
    assert {name.partition(".")[0] for name in embedder.backbone.state_dict()} == {"visual"}
    assert sum(map(torch.numel, embedder.parameters())) == sum(map(torch.numel, model.visual.parameters()))


@pytest.mark.parametrize(("resize_mode", "resize"), [("squash", (32, 32)), ("shortest", 32)])
def test_the_preprocessing_is_open_clips_own(resize_mode: str, resize: Any, photos: Path, tmp_path: Path) -> None:
    save_open_clip(tmp_path)
    settings = json.loads((tmp_path / "open_clip_config.json").read_text())
    settings["preprocess_cfg"]["resize_mode"] = resize_mode
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    steps = steps_of(describe(tmp_path))
    assert (steps.resize, steps.crop, steps.interpolation) == (resize, 32, "bicubic")
    assert [*steps.mean, *steps.std] == [*OPEN_CLIP_STEPS["mean"], *OPEN_CLIP_STEPS["std"]]
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    theirs = transform(Image.open(photos / "coffee.png").convert("RGB"))
    pixels = preprocess(decode((photos / "coffee.png").read_bytes()), steps)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (steps.mean, steps.std))
    assert ((theirs * std + mean) * 255 - pixels).abs().max() <= 2  # Pillow's rounding, and torchvision's

    settings["preprocess_cfg"]["resize_mode"] = "longest"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="resizes images by longest and bicubic, which embedx does not"):
        describe(tmp_path)


def test_the_preprocessing_of_a_name_is_its_tags() -> None:
    siglip = steps_of(describe("ViT-B-16-SigLIP/webli"))
    assert (siglip.resize, siglip.crop, siglip.mean) == ((224, 224), 224, (0.5, 0.5, 0.5))
    assert steps_of(describe("ViT-B-16-SigLIP", weights="random")) == siglip  # its only tag's
    laion, openai = (describe(name) for name in ("ViT-L-14/laion2b_s32b_b82k", "ViT-L-14-quickgelu/openai"))
    assert steps_of(laion).mean == (0.5, 0.5, 0.5)
    assert steps_of(openai).mean == open_clip.OPENAI_DATASET_MEAN
    assert steps_of(describe("ViT-L-14", weights="random")) == steps_of(openai)  # open_clip's default
    assert laion.architecture.weights.to_json() == {
        "name": "open_clip/ViT-L-14/laion2b_s32b_b82k",
        "sha256": "not in the cache",
    }
    assert laion.shapes == {"embeddings": (768,)}


@pytest.mark.parametrize("tower", ["vit", "timm"])
def test_another_image_size_resamples_the_position_embeddings_as_open_clip_does(tower: str, tmp_path: Path) -> None:
    save_open_clip(tmp_path, **TOWERS[tower])
    spec = describe(tmp_path, image_size=64)
    assert steps_of(spec).resize == (64, 64)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    model = open_clip.create_model(f"local-dir:{tmp_path}", force_image_size=64).eval()
    with torch.inference_mode():
        torch.testing.assert_close(
            spec.load()(pixels)["embeddings"], own_features(model, spec, pixels), rtol=1e-4, atol=1e-4
        )
    assert "position_embeddings" in spec.architecture.weights.to_json()


def test_a_checkpoint_of_training_and_random_weights_need_the_settings_alone(tmp_path: Path) -> None:
    model = save_open_clip(tmp_path)
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("visual.")}
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no weights \(open_clip_model.safetensors or"):
        describe(tmp_path)
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "epoch_1.pt")
    loaded = describe(tmp_path, checkpoint=str(tmp_path / "epoch_1.pt")).load().backbone.state_dict()
    assert loaded.keys() == own.keys() and all(torch.equal(loaded[name], own[name]) for name in own)
    save_of_transformers(tmp_path / "other", SETTINGS["siglip"][0])
    with pytest.raises(CheckpointError, match=r"model.safetensors"):
        describe(tmp_path, checkpoint=str(tmp_path / "other" / "model.safetensors")).load()
    one, same, other = (
        next(describe(tmp_path, weights="random", seed=seed).load().backbone.parameters()) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_its_layers_are_stored_beside_the_embeddings(tmp_path: Path) -> None:
    model = save_open_clip(tmp_path)
    layer = "visual.transformer.resblocks.0"
    assert describe_layers(BackboneOptions(backbone=f"openclip:{tmp_path}"))[layer] == (17, 32)
    spec = describe(tmp_path, layer=(layer,), pool="cls")
    kept: list[Tensor] = []
    model.visual.transformer.resblocks[0].register_forward_hook(lambda module, inputs, output: kept.append(output))
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        rows = spec.load()(pixels)
    torch.testing.assert_close(rows["embeddings"], own_features(model, spec, pixels))
    torch.testing.assert_close(rows[layer], kept[0][:, 0])


def test_a_model_that_the_program_has_registered_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model-of-mine.json"
    file.write_text(json.dumps(OPEN_CLIP))
    open_clip.add_model_config(file)
    model = open_clip.create_model("model-of-mine").eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    spec = describe("model-of-mine", checkpoint=str(tmp_path / "weights.pt"))
    assert steps_of(spec).mean == open_clip.OPENAI_DATASET_MEAN
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(spec.load()(pixels)["embeddings"], own_features(model, spec, pixels))
    with pytest.raises(ConfigError, match="openclip:model-of-mine names no weights; load weights of your own"):
        describe("model-of-mine")


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        ("ViT-B-32", {}, r"ViT-B-32 names no weights; give --backbone openclip:ViT-B-32/TAG, .* laion2b_s34b_b79k"),
        ("ViT-B/32", {}, r"ViT-B/32 names no weights; give --backbone openclip:ViT-B-32/TAG"),
        ("ViT-B-32", {"weights": "openai"}, r"--weights openai: .* are part of their name; give .* openclip:NAME/TAG"),
        ("ViT-B-32/openai", {}, r"QuickGELU.*; give --backbone openclip:ViT-B-32-quickgelu/openai"),
        ("ViT-B-32/laion2b_s34b", {}, r"did you mean openclip:ViT-B-32/laion2b_s34b_b79k"),
        ("ViT-B-23/openai", {}, r"unknown backbone 'openclip:ViT-B-23/openai'"),
        ("hf-hub:owner/model", {}, r"the Hugging Face cache has no such model"),
        ("local-dir:nowhere", {}, r"nowhere has no open_clip_config.json"),
    ],
)
def test_names_that_say_too_little_or_do_not_exist(
    backbone: str, options: dict[str, Any], message: str, cache: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        describe(backbone, **options)


def test_weights_that_cant_be_had_are_an_error_within_seconds(cache: Path) -> None:
    begun = time.monotonic()
    for backbone, repository in (
        ("ViT-B-32/laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        ("hf-hub:owner/model", "owner/model"),
    ):
        config = ExtractConfig(backbone=f"openclip:{backbone}", out=cache / "store")
        with pytest.raises(CheckpointError, match="can't be downloaded") as caught:
            describe_backbone(config)
        assert f"hf download {repository}" in str(caught.value) and str(cache) in str(caught.value)
    assert time.monotonic() - begun < 15


def test_weights_of_a_tag_are_those_in_the_cache(cache: Path) -> None:
    file = cached_weights(cache, "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", {"visual.proj": torch.zeros(768, 512)})
    file.rename(file.with_name("open_clip_model.safetensors"))
    spec = describe("ViT-B-32/laion2b_s34b_b79k")
    assert spec.architecture.weights.path == file.with_name("open_clip_model.safetensors")
    assert len(str(spec.architecture.weights.to_json()["sha256"])) == 64
    with pytest.raises(CheckpointError, match=r"open_clip_model\.safetensors"):
        spec.load()


def test_a_repository_in_the_cache_needs_no_network(cache: Path) -> None:
    file = cached_weights(cache, "owner/model", {"nothing": torch.zeros(1)})
    model = save_open_clip(file.parent)
    spec = describe("hf-hub:owner/model")
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(spec.load()(pixels)["embeddings"], own_features(model, spec, pixels))


def test_nothing_is_logged_and_the_programs_logging_stays_as_it_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_open_clip(tmp_path)
    handlers, filters = list(logging.getLogger().handlers), list(logging.getLogger().filters)
    capfd.readouterr()
    describe(tmp_path, weights="random").load()
    assert capfd.readouterr().err == ""
    assert (logging.getLogger().handlers, logging.getLogger().filters) == (handlers, filters)


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ConfigError, match=r"openclip:RN50 needs open_clip: pip install 'embedx\[openclip\]'"):
        describe("RN50")
