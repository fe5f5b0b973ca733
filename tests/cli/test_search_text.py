"""`embedx search STORE --text …`, of a small text-image model whose library is asked for the same ranking."""

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

import embedx
from tests import runs
from tests.models.backbones.text_image import SETTINGS, save_open_clip, save_transformers

NAMES = ("astronaut.png", "coffee.png", "rocket.jpg", "chelsea.png", "brick.png", "grass.png")
TEXTS = ("a photo of a cat", "coffee", "red rocket")


@pytest.mark.parametrize(
    "kind", ["clip", pytest.param("siglip", marks=pytest.mark.soak), pytest.param("openclip", marks=pytest.mark.soak)]
)
def test_the_ranking_is_the_librarys(kind: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in NAMES:  # square, so that every way to crop cuts the same
        image = Image.open(photos / name).convert("RGB").resize((64, 64))
        image.save(tmp_path / "images" / f"{Path(name).stem}.png")
    keys = sorted(path.name for path in (tmp_path / "images").iterdir())
    images = [Image.open(tmp_path / "images" / key) for key in keys]
    of_kind = _of_open_clip if kind == "openclip" else _of_transformers
    expected = of_kind(tmp_path / "model", kind, images)
    assert len({tuple(row.argsort().tolist()) for row in expected}) > 1
    backbone = f"{'openclip' if kind == 'openclip' else 'hf'}:{tmp_path / 'model'}"
    embedx.extract(tmp_path / "images", backbone=backbone, out=tmp_path / "store", workers=0, progress=False)

    texts = [word for text in (*TEXTS, "cat " * 40) for word in ("--text", text)]
    done = runs.run("search", "store", *texts, "-k", "6", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert " ".join(done.stderr.split()).count("tokens that the model takes; its end is cut") == 1
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for text, cosines in zip(TEXTS, expected, strict=True):
        found = [row for row in rows if row["query"] == text]
        order = cosines.argsort(descending=True)
        assert [row["key"] for row in found] == [keys[number] for number in order]
        # The images are resized by Pillow there, and by torchvision here, whose pixels differ by at most 1 of 255.
        assert [row["similarity"] for row in found] == pytest.approx(cosines[order].tolist(), abs=0.02)


def _of_transformers(folder: Path, kind: str, images: list[Any]) -> Tensor:
    """Returns the cosines [texts, images] that the library's logits are made of."""
    model = save_transformers(folder, kind)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    filled = {"padding": "max_length" if kind == "siglip" else True}
    tokens = tokenizer(list(TEXTS), **filled, truncation=True, return_tensors="pt")
    tokens = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
    pixels = SETTINGS[kind][1](images, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        logits = model(pixel_values=pixels, **tokens).logits_per_text
        return (logits - getattr(model, "logit_bias", 0)) / model.logit_scale.exp()


def _of_open_clip(folder: Path, kind: str, images: list[Any]) -> Tensor:
    """Returns the cosines [texts, images] that the library's logits are made of."""
    model = save_open_clip(folder)
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    pixels = torch.stack([transform(image) for image in images])
    with torch.inference_mode():
        _, logits = model.get_logits(pixels, open_clip.get_tokenizer(f"local-dir:{folder}")(list(TEXTS)))
        return logits / model.logit_scale.exp()


def test_a_store_of_images_alone_names_the_models_that_embed_texts(tmp_path: Path) -> None:
    embedx.extract(None, backbone="shufflenet_v2_x0_5", weights="sample", out=tmp_path / "s", workers=0, progress=False)
    done = runs.run("search", "s", "--text", "a red car", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert "shufflenet_v2_x0_5 embeds images alone" in done.stderr and "hf:openai/clip-vit" in done.stderr
