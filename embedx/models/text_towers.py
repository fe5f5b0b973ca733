"""The half of a text-image model that embeds texts, in the space of the images' embeddings.

Shapes: n texts, L tokens of a text, D embedding dimension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from embedx.errors import ConfigError

_BATCH = 64
"""The number of texts in a forward pass."""


class TextTower(ABC):
    """The tokenizer and the text encoder of a text-image model, in float32.

    Args:
        name: The text that was given to `--backbone`.
        model: The model that encodes texts, with its weights, on the CPU.
        context: The most tokens of a text, those that mark its begin and its end included.
        vocabulary: The number of tokens that the model knows.
    """

    def __init__(self, name: str, model: nn.Module, context: int, vocabulary: int) -> None:
        self.name = name
        self.model = model.float().eval()
        self.context = context
        self.vocabulary = vocabulary

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        """Returns the arguments of `encode`, each [n, L] int64; a text beyond the context is cut."""

    @abstractmethod
    def is_cut(self, text: str) -> bool:
        """Tells whether a text has more tokens than the context, so that `tokenize` drops its end."""

    @abstractmethod
    def encode(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Returns the embeddings [n, D] of tokens, as the library computes them."""

    def embed(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """Returns the embeddings [n, D] float32 of texts, on the CPU, as the library gives them: not scaled.

        Raises:
            ConfigError: If the tokenizer knows more tokens than the model, and so is not its own.
        """
        self.model.to(device)
        rows = []
        with torch.inference_mode():
            for start in range(0, len(texts), _BATCH):
                tokens = self.tokenize(texts[start : start + _BATCH])
                self._check_known(tokens)
                rows.append(self.encode({name: value.to(device) for name, value in tokens.items()}).float().cpu())
        return torch.cat(rows)

    def _check_known(self, tokens: Mapping[str, Tensor]) -> None:
        largest = max(int(value.max()) for value in tokens.values())
        if largest >= self.vocabulary:
            raise ConfigError(
                f"the tokenizer of {self.name} has a token {largest}, and its text encoder knows {self.vocabulary} "
                "tokens; put the tokenizer that belongs to the model beside its weights"
            )


def no_texts(backbone: str, reason: str = "embeds images alone") -> ConfigError:
    """Returns the error of asking for texts where the backbone of this name has nothing that embeds them."""
    return ConfigError(
        f"{backbone} {reason}, so texts can't be compared with its embeddings; for texts, extract a store by a "
        "text-image model, such as --backbone hf:openai/clip-vit-base-patch16, hf:google/siglip2-base-patch16-224 or "
        "openclip:ViT-B-32/laion2b_s34b_b79k"
    )
