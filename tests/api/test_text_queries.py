from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.nn import functional

import embedx
from embedx.errors import ConfigError, StoreMismatchError
from tests.models.backbones.test_huggingface import CLIP_PROCESSOR, MODELS
from tests.models.backbones.test_huggingface import save as save_of_transformers
from tests.models.backbones.test_openclip import TOWERS
from tests.models.backbones.text_image import SETTINGS, WORDS, save_open_clip, save_tokenizer, save_transformers

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("astronaut.png", "coffee.png", "rocket.jpg", "chelsea.png")
TEXTS = ["a photo of a cat", "coffee", "red rocket", "moon"]


@pytest.fixture
def images(photos: Path, tmp_path: Path) -> Path:
    """Square ones, of which every way to crop cuts the same."""
    (tmp_path / "images").mkdir()
    for name in NAMES:
        image = Image.open(photos / name).convert("RGB").resize((64, 64))
        image.save(tmp_path / "images" / f"{Path(name).stem}.png")
    return tmp_path / "images"


def extract(backbone: str, images: Path, out: Path, **options: Any) -> embedx.Store:
    return embedx.extract(images, backbone=backbone, out=out, progress=False, workers=0, batch_size=2, **options)


def pictures(images: Path, rows: Any) -> list[Image.Image]:
    return [Image.open(images / key) for key in rows.keys]


def own_texts(kind: str, model: Any, folder: Path, texts: list[str]) -> tuple[Tensor, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    filled = {"padding": "max_length" if kind == "siglip" else True}
    tokens = tokenizer(texts, **filled, truncation=True, return_tensors="pt")
    tokens = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
    with torch.inference_mode():
        return model.get_text_features(**tokens).pooler_output, tokens


@pytest.mark.parametrize("kind", SETTINGS)
def test_texts_and_images_of_transformers_models_are_ranked_as_by_the_library(
    kind: str, images: Path, tmp_path: Path
) -> None:
    model = save_transformers(tmp_path / "model", kind)
    store = extract(f"hf:{tmp_path / 'model'}", images, tmp_path / "store")
    rows = store.load("all", framework="torch")
    found = embedx.embed_texts(store, TEXTS)
    expected, tokens = own_texts(kind, model, tmp_path / "model", TEXTS)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    pixels = SETTINGS[kind][1](pictures(images, rows), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        logits = model(pixel_values=pixels, **tokens).logits_per_text
        own = model.get_image_features(pixel_values=pixels).pooler_output
    assert (functional.cosine_similarity(rows.embeddings, own) > 0.999).all()
    scores = functional.normalize(found, dim=1) @ functional.normalize(rows.embeddings, dim=1).T
    assert scores.argsort(1, descending=True).tolist() == logits.argsort(1, descending=True).tolist()
    assert len({tuple(order) for order in scores.argsort(1).tolist()}) > 1


def test_texts_and_images_of_open_clip_are_ranked_as_by_the_library(images: Path, tmp_path: Path) -> None:
    model = save_open_clip(tmp_path / "model")
    store = extract(f"openclip:{tmp_path / 'model'}", images, tmp_path / "store")
    rows = store.load("all", framework="torch")
    found = embedx.embed_texts(tmp_path / "store", TEXTS)
    name = f"local-dir:{tmp_path / 'model'}"
    tokens = open_clip.get_tokenizer(name)(TEXTS)
    _, _, transform = open_clip.create_model_and_transforms(name)
    pixels = torch.stack([transform(picture) for picture in pictures(images, rows)])
    with torch.inference_mode():
        torch.testing.assert_close(found, model.encode_text(tokens), rtol=1e-5, atol=1e-5)
        _, logits = model.get_logits(pixels, tokens)
    scores = functional.normalize(found, dim=1) @ functional.normalize(rows.embeddings, dim=1).T
    assert scores.argsort(1, descending=True).tolist() == logits.argsort(1, descending=True).tolist()


@pytest.mark.parametrize("custom_text", [False, True])
def test_a_checkpoint_of_either_layout_of_open_clip_has_the_texts_weights(
    custom_text: bool, images: Path, tmp_path: Path
) -> None:
    """Models with a text tower of their own also read the layout in which the text's tensors stand at the top."""
    model = save_open_clip(tmp_path / "old")
    save_open_clip(tmp_path / "model", custom_text=custom_text)
    (tmp_path / "model" / "open_clip_model.safetensors").unlink()
    checkpoint = tmp_path / "epoch_1.pt"
    torch.save({"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}, checkpoint)
    store = extract(f"openclip:{tmp_path / 'model'}", images, tmp_path / "store", checkpoint=checkpoint)
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'model'}")(TEXTS)
    with torch.inference_mode():
        expected = model.encode_text(tokens)
    torch.testing.assert_close(embedx.embed_texts(store, TEXTS), expected, rtol=1e-5, atol=1e-5)


def test_cocas_texts_are_of_unit_length_as_its_images_are(images: Path, tmp_path: Path) -> None:
    model = save_open_clip(tmp_path / "model", **TOWERS["coca"])
    store = extract(f"openclip:{tmp_path / 'model'}", images, tmp_path / "store")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'model'}")(TEXTS, 16)
    with torch.inference_mode():
        expected = model.encode_text(tokens)
    found = embedx.embed_texts(store, TEXTS)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(TEXTS)))


@pytest.fixture
def of_clip(images: Path, tmp_path: Path) -> embedx.Store:
    """A store of a small CLIP."""
    save_transformers(tmp_path / "model", "clip")
    return extract(f"hf:{tmp_path / 'model'}", images, tmp_path / "store")


@pytest.mark.parametrize("kind", ["hf", "openclip"])
def test_a_text_beyond_the_context_is_cut_with_a_notice(kind: str, images: Path, tmp_path: Path) -> None:
    if kind == "hf":
        save_transformers(tmp_path / "model", "clip")
    else:
        save_open_clip(tmp_path / "model")
    store = extract(f"{kind}:{tmp_path / 'model'}", images, tmp_path / "store")
    context = 8 if kind == "hf" else 16
    fits, cut = ("cat " * (context - 2)).strip(), ("cat " * (context - 1)).strip()
    told: list[str] = []
    one, other = embedx.embed_texts(store, [fits, f"{cut} moon"], notice=told.append)
    torch.testing.assert_close(one, other)
    assert len(told) == 1 and f"is longer than the {context} tokens that the model takes" in told[0]
    assert embedx.embed_texts(store, [fits]).shape == (1, 24)


def test_many_texts_are_embedded_as_each_by_itself(of_clip: embedx.Store) -> None:
    texts = [f"{one} {other}" for one in WORDS for other in WORDS[:5]]
    found = embedx.embed_texts(of_clip, texts)
    assert found.shape == (len(texts), 24) and found.dtype == torch.float32
    for number in (0, 33, len(texts) - 1):
        torch.testing.assert_close(found[number], embedx.embed_texts(of_clip, [texts[number]])[0])


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "give the texts as a list of at least one"),
        ("cat", {}, "give the texts as a list of at least one"),
        (["cat", "  ", ""], {}, "text 2 is empty; give words\ntext 3 is empty"),
        (["cat"], {"name": "visual"}, "'visual' is a layer's, which no text can be compared with; give 'embeddings'"),
        (["cat"], {"device": "tpu"}, "'tpu' is none of auto, cpu, cuda"),
    ],
)
def test_texts_that_cant_be_embedded(texts: Any, options: Any, message: str, of_clip: embedx.Store) -> None:
    with pytest.raises(ConfigError, match=message):
        embedx.embed_texts(of_clip, texts, **options)


def test_backbones_that_embed_images_alone_are_refused_with_those_that_do_not(images: Path, tmp_path: Path) -> None:
    save_of_transformers(tmp_path / "vision", MODELS["clip_vision"][0], CLIP_PROCESSOR)
    backbones = {
        "shufflenet_v2_x0_5": "shufflenet_v2_x0_5 embeds images alone",
        "timm:test_vit": "timm:test_vit embeds images alone",
        f"hf:{tmp_path / 'vision'}": "is of the type clip_vision_model, which embeds images alone",
    }
    for number, (backbone, message) in enumerate(backbones.items()):
        weights = {"weights": "DEFAULT" if backbone.startswith("hf:") else "random"}
        store = extract(backbone, images, tmp_path / f"store-{number}", image_size=32, **weights)
        with pytest.raises(ConfigError, match=message) as caught:
            embedx.embed_texts(store, ["cat"])
        for advice in ("hf:openai/clip-vit-base-patch16", "openclip:ViT-B-32/laion2b_s34b_b79k"):
            assert advice in str(caught.value)


def test_weights_that_have_changed_since_are_refused(of_clip: embedx.Store, tmp_path: Path) -> None:
    save_of_transformers(tmp_path / "model", SETTINGS["clip"][0], CLIP_PROCESSOR)
    with pytest.raises(StoreMismatchError, match="texts are comparable by the same weights alone"):
        embedx.embed_texts(of_clip, ["cat"])


def test_a_tokenizer_that_is_missing_or_anothers_is_an_error(of_clip: embedx.Store, tmp_path: Path) -> None:
    file = tmp_path / "model" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["vocab"]["cat"] = 32
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="has a token 32, and its text encoder knows 32 tokens"):
        embedx.embed_texts(of_clip, ["cat"])
    file.write_text("{}")
    with pytest.raises(ConfigError, match="transformers can't read the tokenizer in"):
        embedx.embed_texts(of_clip, ["cat"])
    file.unlink()
    with pytest.raises(ConfigError, match=r"has no tokenizer \(tokenizer.json or"):
        embedx.embed_texts(of_clip, ["cat"])


def test_a_text_encoder_that_is_on_the_hub_alone_is_an_error_with_the_way_out(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # which asks once, not for half a minute
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    save_open_clip(tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "open_clip_config.json").read_text())
    settings["model_cfg"]["text_cfg"] |= {"hf_model_name": "owner/text", "hf_tokenizer_name": "owner/text"}
    (tmp_path / "model" / "open_clip_config.json").write_text(json.dumps(settings))
    store = extract(f"openclip:{tmp_path / 'model'}", images, tmp_path / "store")  # which needs no text encoder
    with pytest.raises(ConfigError, match=r"the tokenizer of .* can't be had .*; fill the Hugging Face cache"):
        embedx.embed_texts(store, ["cat"])
    save_tokenizer(tmp_path / "model", ["input_ids"])
    with pytest.raises(ConfigError, match=r"the text encoder of .* can't be built .*; fill the Hugging Face cache"):
        embedx.embed_texts(store, ["cat"])


def test_random_weights_are_those_of_the_stores_seed(images: Path, tmp_path: Path) -> None:
    save_open_clip(tmp_path / "model")
    store = extract(f"openclip:{tmp_path / 'model'}", images, tmp_path / "store", weights="random", seed=3)
    torch.testing.assert_close(embedx.embed_texts(store, TEXTS), embedx.embed_texts(store, TEXTS))
