from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timm.layers
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import embedx
from embedx.config import ExtractConfig
from embedx.data.decoding.images import decode, preprocess
from embedx.errors import CheckpointError, ConfigError
from embedx.models.backbones import BackboneSpec, describe_backbone, describe_layers
from embedx.models.backbones.base import BackboneOptions
from embedx.run.extract import extract
from tests.models.steps import steps_of

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("astronaut.png", "coffee.png", "rocket.jpg", "chelsea.png")
TRANSFORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SQUARE = {"image_size": 32, "patch_size": 8}
TEXT = {**TRANSFORMER, "vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
VIT = transformers.ViTConfig(**TRANSFORMER, **SQUARE)
VIT_PROCESSOR = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
CLIP_PROCESSOR = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
MODELS: dict[str, tuple[Any, Any, str]] = {
    "vit": (VIT, VIT_PROCESSOR, "pooler_output"),
    "dinov2": (
        transformers.Dinov2Config(**TRANSFORMER, image_size=28, patch_size=14),
        transformers.BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}),
        "pooler_output",
    ),
    "convnext": (
        transformers.ConvNextConfig(**STAGES),
        transformers.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875),
        "pooler_output",
    ),
    "resnet": (
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
        transformers.ConvNextImageProcessor(size={"shortest_edge": 64}, rescale_factor=1 / 127.5),
        "pooler_output",
    ),
    "segformer": (
        transformers.SegformerConfig(
            num_encoder_blocks=1, depths=[1], sr_ratios=[1], hidden_sizes=[24], patch_sizes=[7], strides=[4],
            num_attention_heads=[2], mlp_ratios=[2],
        ),
        transformers.SegformerImageProcessor(size={"height": 64, "width": 64}, do_normalize=False),
        "last_hidden_state",
    ),
    "clip_vision": (transformers.CLIPVisionConfig(**TRANSFORMER, **SQUARE), CLIP_PROCESSOR, "pooler_output"),
    "clip": (
        transformers.CLIPConfig(text_config=TEXT, vision_config={**TRANSFORMER, **SQUARE}, projection_dim=24),
        CLIP_PROCESSOR,
        "get_image_features",
    ),
}  # fmt: skip


def save(folder: Path, settings: Any, processor: Any = VIT_PROCESSOR, **options: Any) -> nn.Module:
    """Saves a small model of random weights, as transformers does."""
    torch.manual_seed(7)
    model = transformers.AutoModel.from_config(settings).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)  # as made, such small models see hardly any difference between images
    model.save_pretrained(folder, **options)
    if processor:
        processor.save_pretrained(folder)
    return model


def describe(folder: Path, **options: Any) -> BackboneSpec:
    return describe_backbone(ExtractConfig(backbone=f"hf:{folder}", out=Path("store"), **options), download=False)


def features(model: Any, images: Tensor, output: str) -> Tensor:
    """What a user of transformers would take for the embedding."""
    with torch.inference_mode():
        if output == "get_image_features":
            return model.get_image_features(pixel_values=images).pooler_output
        value = model(pixel_values=images)[output].squeeze()
        return value.mean((2, 3)) if value.ndim == 4 else value


@pytest.fixture
def images(photos: Path, tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in NAMES:
        (tmp_path / "images" / name).symlink_to(photos / name)
    return tmp_path / "images"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", MODELS)
def test_rows_equal_transformers_own_forward_pass(kind: str, images: Path, tmp_path: Path) -> None:
    settings, processor, output = MODELS[kind]
    model = save(tmp_path / "model", settings, processor)
    config = ExtractConfig(
        backbone=f"hf:{tmp_path / 'model'}", data=(str(images),), out=tmp_path / "store", workers=0, batch_size=2
    )
    extract(config)
    rows = embedx.open(tmp_path / "store").load("all", framework="torch")
    steps = steps_of(describe(tmp_path / "model"))
    pixels = torch.stack([preprocess(decode((images / key).read_bytes(), steps=steps), steps) for key in rows.keys])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (steps.mean, steps.std))
    expected = features(model, (pixels / 255 - mean) / std, output)
    assert rows.embeddings.shape == expected.shape
    assert (rows.embeddings - expected).abs().max() <= 1e-5 * expected.abs().max()

    files = [Image.open(images / key).convert("RGB") for key in rows.keys]
    theirs = processor(files, return_tensors="pt")["pixel_values"]
    off = (theirs - (pixels / 255 - mean) / std).abs() * std * 255
    # Of one image an odd number of pixels is cropped: transformers rounds it down, torchvision's presets to even.
    assert off.flatten(1).amax(1).sort().values[:-1].max() <= 1
    expected = features(model, theirs, output)
    own, other = (nn.functional.cosine_similarity(rows.embeddings, expected.roll(shift, 0)) for shift in (0, 1))
    assert own.min() >= 0.998
    assert (own > other).all()


def test_its_layers_are_its_modules(tmp_path: Path) -> None:
    settings, processor, _ = MODELS["vit"]
    model = save(tmp_path / "model", settings, processor)
    layer = "layers.0" if "layers.0" in dict(model.named_modules()) else "encoder.layer.0"  # before transformers 5.9
    spec = describe(tmp_path / "model", layer=(layer,))
    size = steps_of(spec).crop
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.inference_mode():
        embedder = spec.load()
        rows = embedder(pixels)[layer]
        tokens = model((pixels - embedder.mean) / embedder.std, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(rows, tokens.mean(1))
    listed = describe_layers(BackboneOptions(backbone=f"hf:{tmp_path / 'model'}"))
    assert listed[layer] == tokens.shape[1:]


def test_a_checkpoint_in_shards_is_one_set_of_weights(tmp_path: Path) -> None:
    model = save(tmp_path, VIT, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    weights = describe(tmp_path).architecture.weights
    sha256 = hashlib.sha256(b"".join(shard.read_bytes() for shard in shards)).hexdigest()
    assert weights.to_json() == {"name": f"hf:{tmp_path}", "sha256": sha256}
    loaded = describe(tmp_path).load().backbone.state_dict()
    assert {name: tensor.tolist() for name, tensor in loaded.items()} == {
        name: tensor.tolist() for name, tensor in model.state_dict().items()
    }
    shards[0].unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        describe(tmp_path)


def test_a_classifiers_weights_have_no_pooler_so_tokens_are_pooled(tmp_path: Path) -> None:
    torch.manual_seed(7)
    classifier = transformers.ViTForImageClassification(VIT).eval()
    classifier.save_pretrained(tmp_path)
    VIT_PROCESSOR.save_pretrained(tmp_path)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    embedder = describe(tmp_path).load()
    with torch.inference_mode():
        expected = classifier.vit((pixels - embedder.mean) / embedder.std).last_hidden_state
        torch.testing.assert_close(embedder(pixels)["embeddings"], expected.mean(1))
    assert describe(tmp_path, pool="none").shapes == {"embeddings": (17, 32)}


def test_a_checkpoint_and_random_weights_need_the_settings_alone(tmp_path: Path) -> None:
    model = save(tmp_path, VIT)
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"has no weights \(model.safetensors or pytorch_model.bin\)"):
        describe(tmp_path)
    loaded = describe(tmp_path, checkpoint=tmp_path / "weights.safetensors").load().backbone.state_dict()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.items())
    one, same, other = (
        next(describe(tmp_path, weights="random", seed=seed).load().backbone.parameters()) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    with pytest.raises(ConfigError, match=r"--weights tag: hf:.* has only its own; give DEFAULT or random"):
        describe(tmp_path, weights="tag")


def test_weights_of_another_model_are_a_fault(tmp_path: Path) -> None:
    save(tmp_path, VIT)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.bias"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"it lacks 1 of the model's tensors, such as \S+\.bias"):
        describe(tmp_path).load()
    larger = transformers.ViTConfig(**TRANSFORMER | {"intermediate_size": 65}, **SQUARE)
    save(tmp_path / "larger", larger)
    with pytest.raises(CheckpointError, match="does not fit hf:"):
        describe(tmp_path, checkpoint=tmp_path / "larger" / "model.safetensors").load()
    (tmp_path / "model.safetensors").write_text("nothing")
    with pytest.raises(CheckpointError, match=r"model.safetensors: not a readable checkpoint"):
        describe(tmp_path)


@pytest.mark.parametrize(
    "processor",
    [
        None,
        transformers.LevitImageProcessor(),
        transformers.EfficientNetImageProcessor(),
        transformers.MobileViTImageProcessor(),
        transformers.ViTImageProcessor(resample=Image.Resampling.NEAREST),
        transformers.ViTImageProcessor(size={"height": 32, "width": 64}),
        transformers.ViTImageProcessor(do_resize=False),
    ],
)
def test_preprocessing_that_is_none_or_does_other_things_than_it_says_is_not_taken_over(
    processor: Any, tmp_path: Path
) -> None:
    save(tmp_path, VIT, processor)
    with pytest.raises(ConfigError, match=r"the preprocessing of .* is unknown"):
        describe(tmp_path)


def test_large_images_for_convnext_are_squashed(tmp_path: Path) -> None:
    save(tmp_path, transformers.ConvNextConfig(**STAGES), transformers.ConvNextImageProcessor())
    steps = steps_of(describe(tmp_path))
    assert (steps.resize, steps.crop, steps.interpolation) == ((384, 384), 384, "bicubic")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (transformers.BertConfig(**TEXT), "is a BertModel, which takes input_ids, no images"),
        (transformers.ViTMAEConfig(**TRANSFORMER, **SQUARE), "ViTMAEModel masks images at random"),
        (transformers.Siglip2VisionConfig(**TRANSFORMER), "Siglip2VisionModel needs more than images: "),
    ],
)
def test_models_without_an_embedding_of_images_are_a_fault(settings: Any, message: str, tmp_path: Path) -> None:
    save(tmp_path, settings)
    with pytest.raises(ConfigError, match=message):
        describe(tmp_path)


@pytest.mark.parametrize("name", ["vit", "clip"])
def test_another_image_size_interpolates_the_position_embeddings(tmp_path: Path, name: str) -> None:
    settings, processor, output = MODELS[name]
    model: Any = save(tmp_path, settings, processor)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    spec = describe(tmp_path, image_size=64)
    steps = steps_of(spec)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (steps.mean, steps.std))
    normalised = (images / 255 - mean) / std
    with torch.inference_mode():
        run = model.get_image_features if output == "get_image_features" else model
        expected = run(pixel_values=normalised, interpolate_pos_encoding=True).pooler_output
        torch.testing.assert_close(spec.load()(images)["embeddings"], expected, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_with_a_prefix_and_another_image_size_is_fitted(tmp_path: Path) -> None:
    larger = transformers.ViTConfig(**TRANSFORMER, image_size=64, patch_size=8)
    state = save(tmp_path / "larger", larger).state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "last.pth")
    save(tmp_path / "small", VIT)
    spec = describe(tmp_path / "small", checkpoint=tmp_path / "last.pth")
    assert spec.architecture.weights.to_json()["position_embeddings"] == "8x8 to 4x4"
    own = spec.load().backbone.state_dict()
    name = "embeddings.position_embeddings"
    expected = timm.layers.resample_abs_pos_embed(state[name], [4, 4])
    torch.testing.assert_close(own[name], expected)
    assert all(torch.equal(own[key], value) for key, value in state.items() if key != name)


def test_an_image_size_that_the_model_does_not_take_is_a_fault(tmp_path: Path) -> None:
    save(tmp_path, VIT)
    with pytest.raises(ConfigError, match="does not take images of 4x4: "):
        describe(tmp_path, image_size=4)


def test_code_that_comes_with_a_model_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Settings: pass")
    settings = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Settings", "AutoModel": "code.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    VIT_PROCESSOR.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="needs code that comes with the model, which embedx never runs"):
        describe(tmp_path, weights="random")
    (tmp_path / "config.json").write_text('{"model_type": "mine"}')
    with pytest.raises(ConfigError, match=r"transformers can't read .*config.json"):
        describe(tmp_path, weights="random")
    assert not (tmp_path / "ran").exists()


def test_a_model_that_cant_be_had_is_an_error_within_seconds(cache: Path) -> None:
    config = ExtractConfig(backbone="hf:owner/model", out=cache / "store")
    with pytest.raises(ConfigError, match="no such folder, and the Hugging Face cache has no such model"):
        describe_backbone(config, download=False)
    begun = time.monotonic()
    with pytest.raises(CheckpointError, match="can't be downloaded") as caught:
        describe_backbone(config)
    assert time.monotonic() - begun < 15
    for advice in (str(cache), "hf download owner/model", "give a folder that holds the model"):
        assert advice in str(caught.value)


def test_a_model_in_the_cache_needs_no_network(cache: Path) -> None:
    (cache / "models--owner--model" / "refs").mkdir(parents=True)
    (cache / "models--owner--model" / "refs" / "main").write_text("0" * 40)
    snapshot = cache / "models--owner--model" / "snapshots" / ("0" * 40)
    save(snapshot, VIT)
    config = ExtractConfig(backbone="hf:owner/model", out=cache / "store")
    assert describe_backbone(config).architecture.weights.path == snapshot
    (snapshot / "model.safetensors").unlink()
    assert describe_backbone(config, download=False).architecture.weights.to_json()["sha256"] == "not in the cache"
    with pytest.raises(CheckpointError, match="or load weights of your own with --checkpoint FILE"):
        describe_backbone(config)


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"--backbone hf:model needs transformers: pip install 'embedx\[hf\]'"):
        describe(Path("model"))
