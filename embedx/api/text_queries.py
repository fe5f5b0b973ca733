"""`embedx.embed_texts`: embeddings of texts that are compared with a store's, of a text-image model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from embedx.api.opened_stores import opened
from embedx.errors import ConfigError, StoreMismatchError
from embedx.heartbeat import SILENT
from embedx.models.backbones import check_embeds_texts, find_text_model
from embedx.models.backbones.base import Architecture, BackboneOptions
from embedx.models.device import resolve_device
from embedx.models.threads import ONE_AT_A_TIME
from embedx.names import EMBEDDINGS
from embedx.run.stored_job import stored_config, working_directory
from embedx.run.torch_settings import torch_settings_kept
from embedx.store.reading.reader import Store


def embed_texts(
    store: Store | str | Path,
    texts: Sequence[str],
    *,
    name: str = EMBEDDINGS,
    device: str | None = None,
    trust: bool = False,
    notice: Callable[[str], None] = lambda text: None,
) -> Tensor:
    """Returns the embeddings [n, D] float32 of texts in the space of a store's images, not scaled to unit length.

    They are computed in float32 by the text encoder and the tokenizer of the store's own backbone and weights. A text
    is taken as it is: a template such as "a photo of a cat" is up to the caller.

    Args:
        store: The store of a text-image model, or its path.
        texts: The n texts.
        name: The name of the tensor that the texts are compared with, of which only `embeddings` has that space.
        device: The device to compute on, as for `--device`; None takes the CPU.
        trust: Whether to run a backbone that is code, or a program, although the store names it.
        notice: The function to call with a sentence on each text that is too long for the model, and is cut.

    Raises:
        NotAStoreError: If there is no store at the path.
        ConfigError: If the backbone has no text encoder, its tokenizer can't be had, or a text is empty.
        StoreMismatchError: If the weights are no longer those of the store's recipe.
    """
    _check_texts(texts)
    if name != EMBEDDINGS:
        raise ConfigError(f"the tensor {name!r} is a layer's, which no text can be compared with; give {EMBEDDINGS!r}")
    place = resolve_device(device or "cpu")
    store = opened(store)
    check_embeds_texts(str(store.recipe.get("backbone")))
    config = stored_config(store, trust=trust)
    with ONE_AT_A_TIME, torch_settings_kept():
        with contextlib.chdir(working_directory(store, SILENT.console)):
            model = find_text_model(BackboneOptions.of(config))
            _check_weights(store, model)
            tower = model.text_tower()
        for text in texts:
            if tower.is_cut(text):
                notice(f"{text[:40]!r}… is longer than the {tower.context} tokens that the model takes; its end is cut")
        return tower.embed(texts, place)


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str) or not texts:
        raise ConfigError("give the texts as a list of at least one")
    ConfigError.check(
        [f"text {number} is empty; give words" for number, text in enumerate(texts, 1) if not text.strip()]
    )


def _check_weights(store: Store, model: Architecture) -> None:
    """Checks that a backbone's weights are those that the store's recipe states."""
    then, now = dict(store.recipe.get("weights") or {}), model.weights.to_json()
    then.pop("position_embeddings", None)  # which concern images, and are noted when those are embedded
    if then != now:
        raise StoreMismatchError(
            f"the weights of {store.path} were {_words(then)}, and {model.name} has {_words(now)} now; texts are "
            "comparable by the same weights alone: restore the file"
        )


def _words(weights: dict[str, str | int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in weights.items())
