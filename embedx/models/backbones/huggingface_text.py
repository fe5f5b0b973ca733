"""The text towers of transformers' CLIP, MetaCLIP 2 and SigLIP, with their tokenizers.

The texts' embeddings are those of `get_text_features`, in the space of the images' `get_image_features`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from embedx.errors import ConfigError
from embedx.models.backbones import hub
from embedx.models.text_towers import TextTower

MODEL_TYPES = ("clip", "metaclip_2", "siglip")
"""The `model_type` of the models whose texts and images are embedded in one space."""
_PADDED = ("siglip",)
"""The types that were trained on texts filled up to the whole context, and need that."""
_TOKENIZERS = ("tokenizer.json", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
"""The files of which a tokenizer has at least one; without any, transformers makes up an empty one."""
_FILES = (*_TOKENIZERS, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


class HuggingFaceText(TextTower):
    """The text encoder and the tokenizer of a model of transformers."""

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        settings = model.config.text_config
        context = min(settings.max_position_embeddings, tokenizer.model_max_length)
        super().__init__(name, model, context, settings.vocab_size)
        model.vision_model = nn.Identity()  # which takes no memory
        self._model = model
        self._tokenizer = tokenizer
        self._padding = "max_length" if model.config.model_type in _PADDED else "longest"

    def tokenize(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        """Returns `input_ids` and, if the tokenizer gives one, `attention_mask`."""
        tokens = self._tokenizer(
            list(texts), padding=self._padding, truncation=True, max_length=self.context, return_tensors="pt"
        )
        return {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}

    def is_cut(self, text: str) -> bool:
        """Counts the tokens of the whole text."""
        with hub.quiet_transformers():
            return len(self._tokenizer(text, truncation=False)["input_ids"]) > self.context

    def encode(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Returns what the model's `get_text_features` does."""
        features: Tensor = self._model.get_text_features(**tokens).pooler_output
        return features


def tokenizer_of(folder: Path, repository: str | None) -> Any:
    """Returns the tokenizer in a model's folder, to which it is fetched first if that is the cache's.

    Args:
        folder: The folder of the model's config.json.
        repository: The repository OWNER/NAME on the hub of which that is the cached copy; None for a user's folder.

    Raises:
        ConfigError: If there is none, or transformers can't read it.
    """
    import transformers

    if not _is_there(folder) and repository is not None:
        folder = hub.download(repository, _FILES, advice="or give a folder that holds the model and its tokenizer")
    if not _is_there(folder):
        raise ConfigError(
            f"{folder} has no tokenizer ({' or '.join(_TOKENIZERS[:2])}), which texts need; copy the files of the "
            "model's tokenizer there"
        )
    try:
        with hub.quiet_transformers():
            return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers has no errors of its own
        raise ConfigError(f"transformers can't read the tokenizer in {folder} ({error})") from error


def _is_there(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZERS)
