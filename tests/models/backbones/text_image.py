"""Small text-image models with random weights, as their libraries save them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import nn

from tests.models.backbones.test_huggingface import CLIP_PROCESSOR, SQUARE, TRANSFORMER, save

WORDS = ("a", "photo", "of", "cat", "coffee", "rocket", "moon", "face", "page", "red", "green", "cup", "night", "sky")
CONTEXT = 8
TEXT = {**TRANSFORMER, "vocab_size": 32, "bos_token_id": 1, "eos_token_id": 3, "max_position_embeddings": CONTEXT}
SIGLIP_PROCESSOR = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
SETTINGS: dict[str, tuple[Any, Any]] = {
    "clip": (
        transformers.CLIPConfig(text_config=TEXT, vision_config={**TRANSFORMER, **SQUARE}, projection_dim=24),
        CLIP_PROCESSOR,
    ),
    "siglip": (
        transformers.SiglipConfig(text_config=TEXT, vision_config={**TRANSFORMER, **SQUARE}),
        SIGLIP_PROCESSOR,
    ),
    "metaclip_2": (
        transformers.MetaClip2Config(text_config=TEXT, vision_config={**TRANSFORMER, **SQUARE}, projection_dim=24),
        CLIP_PROCESSOR,
    ),
}
"""The settings of transformers' models, each with its image processor."""

OPEN_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
OPEN_CLIP_STEPS = {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7], "interpolation": "bicubic", "resize_mode": "squash"}


def save_tokenizer(folder: Path, gives: list[str]) -> None:
    """Saves a tokenizer whose tokens are whole words."""
    names = ("<pad>", "<start>", "<unknown>", "<end>", *WORDS)
    words = tokenizers.Tokenizer(WordLevel({word: number for number, word in enumerate(names)}, unk_token="<unknown>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 3)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, model_max_length=CONTEXT, pad_token="<pad>", eos_token="<end>", bos_token="<start>",
        unk_token="<unknown>", model_input_names=gives,
    ).save_pretrained(folder)  # fmt: skip


def save_transformers(folder: Path, kind: str) -> Any:
    """Saves a small model of transformers with its image processor and tokenizer, and returns it."""
    settings, processor = SETTINGS[kind]
    model: Any = save(folder, settings, processor)
    _let_words_matter(model.text_model, model.text_model.get_input_embeddings())
    model.save_pretrained(folder)
    save_tokenizer(folder, ["input_ids"] if kind == "siglip" else ["input_ids", "attention_mask"])
    return model


def save_open_clip(folder: Path, **changes: Any) -> Any:
    """Saves a small model of open_clip in a folder of its layout, and returns it.

    Args:
        folder: The folder, which is made.
        **changes: Further settings of the model; None leaves one out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in {**OPEN_CLIP, **changes}.items() if value is not None}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": settings, "preprocess_cfg": OPEN_CLIP_STEPS})
    )
    torch.manual_seed(7)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    text = getattr(model, "text", model)
    _let_words_matter(text.transformer, text.token_embedding)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return model


def _let_words_matter(encoder: nn.Module, words: Any) -> None:
    """Makes texts differ by more than they have in common, unlike in models of random weights."""
    nn.init.normal_(words.weight, std=3)
    for name, parameter in encoder.named_parameters():
        if parameter.ndim == 1:
            nn.init.constant_(parameter, float("norm" in name and "weight" in name))
