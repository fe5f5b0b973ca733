"""open_clip's models as `openclip:NAME/TAG`, `openclip:FOLDER` or `openclip:hf-hub:OWNER/NAME`: their image towers.

The features are those of `encode_image`, in the space that images and texts share.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedx.errors import ConfigError
from embedx.models.backbones import hub
from embedx.models.backbones.base import Architecture, BackboneKind, BackboneOptions
from embedx.models.backbones.openclip_library import PREFIX, OpenClipModel, model_of
from embedx.models.outputs import main_tensor
from embedx.models.text_towers import TextTower
from embedx.models.weights.find import Weights, given_weights, weights_of_file
from embedx.models.weights.matching import fill
from embedx.models.weights.read import read_state_dict
from embedx.recipe import Preprocessing


class ImageTower(nn.Module):
    """The image tower of a model of open_clip, whose tensors keep their names; the rest of the model is let go."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.visual: Any = model.visual
        normalize = inspect.signature(model.encode_image).parameters.get("normalize")  # type: ignore[arg-type]
        self._normalizes = normalize is not None and normalize.default is True  # as CoCa does

    def forward(self, images: Tensor) -> Tensor:
        """Computes the features [B, D] of normalised images [B, 3, H, W], as `encode_image` does."""
        features = main_tensor(self.visual(images))
        return functional.normalize(features, dim=-1) if self._normalizes else features


class OpenClipBackbone(Architecture):
    """A model that open_clip builds, for the image size that was asked for."""

    libraries = ("open_clip_torch", "timm")

    def __init__(self, name: str, weights: Weights, model: OpenClipModel, image_size: int | None) -> None:
        super().__init__(name, weights, _preprocessing(name, model.image_steps()))
        self._model = model
        self._image_size = image_size

    def for_size(self, image_size: int) -> Self:
        """Returns the same model, to be built for another size."""
        other = copy.copy(self)
        other._image_size = image_size
        return other

    def build(self) -> tuple[nn.Module, tuple[str, ...]]:
        """Builds the image tower."""
        return self._tower("cpu"), ()

    def outline(self) -> nn.Module:
        """Builds the image tower with its buffers on the meta device too, as some builders run parts of the model."""
        return self._tower("meta")

    def building(self) -> contextlib.AbstractContextManager[None]:
        """Leaves the parameters of a model that is loaded on the CPU, for the same reason."""
        return torch.random.fork_rng(devices=[])

    def translate(self, model: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        """Translates by open_clip's own function, which knows the names of other projects' checkpoints."""
        is_image_only = isinstance(model, ImageTower)
        try:
            with torch.random.fork_rng(devices=[]):
                whole = self._model.create(image_size=self._image_size)
            assert self.weights.path is not None
            self._model.load_checkpoint(whole, self.weights.path)
        except Exception:  # noqa: BLE001  (it expects its own checkpoints, and raises anything on others)
            return None
        return (ImageTower(whole) if is_image_only else whole).state_dict()

    def text_tower(self) -> TextTower:
        """Loads the whole model, of which the text tower is kept."""
        tokenizer = self._model.tokenizer()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.weights.seed)
            model = self._model.create(image_size=self._image_size)
        if (path := self.weights.path) is not None:
            state = read_state_dict(path)
            fill(model, state, source=path, key=self.weights.key, translate=self.translate)
        return OpenClipText(self.name, model, tokenizer)

    def _tower(self, device: str) -> ImageTower:
        return ImageTower(self._model.create(image_size=self._image_size, image_only=True, device=device)).eval()


class OpenClipText(TextTower):
    """The text tower and the tokenizer of a model of open_clip."""

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        vocabulary = model.vocab_size if hasattr(model, "vocab_size") else model.text.vocab_size  # of CoCa
        super().__init__(name, model, tokenizer.context_length, vocabulary)
        model.visual = nn.Identity()  # which takes no memory
        self._model = model
        self._tokenizer = tokenizer
        (empty,) = tokenizer([""])
        self._filler = empty.mode().values

    def tokenize(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        """Returns the tokens as `text`, filled up to the context."""
        return {"text": self._tokenizer(list(texts))}

    def is_cut(self, text: str) -> bool:
        """Tells whether there are more tokens, besides those that fill up, in a longer context."""
        ours, longer = (self._tokenizer([text], size * self.context)[0] for size in (1, 2))
        return bool((longer != self._filler).sum() > (ours != self._filler).sum())

    def encode(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Returns what the model's `encode_text` does."""
        features: Tensor = self._model.encode_text(**tokens)
        return features


def find(options: BackboneOptions, download: bool) -> OpenClipBackbone:
    """Finds a model in open_clip's tables, in a folder or on the Hugging Face hub."""
    backbone = options.backbone
    hub.require("open_clip", extra="openclip", backbone=backbone)
    model = model_of(backbone, download=download)
    weights = given_weights(options)
    if weights is None:
        if options.weights != "DEFAULT":
            raise ConfigError(
                f"--weights {options.weights}: the weights of {PREFIX} models are part of their name; give "
                f"--backbone {PREFIX}NAME/TAG"
            )
        weights = _own_weights(model, download=download)
    return OpenClipBackbone(backbone, weights, model, options.image_size)


def _own_weights(model: OpenClipModel, *, download: bool) -> Weights:
    name = model.backbone if model.tag is None else f"open_clip/{model.name}/{model.tag}"
    path = model.weights_file(download=download)
    return Weights(name) if path is None else weights_of_file(name, path)


def _preprocessing(backbone: str, steps: Mapping[str, Any]) -> Preprocessing:
    """Translates open_clip's preprocessing for inference."""
    size = steps["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ConfigError(f"{backbone} takes images of {height}x{width}; embedx feeds square ones only")
    if steps["resize_mode"] not in ("shortest", "squash") or steps["interpolation"] not in ("bilinear", "bicubic"):
        raise ConfigError(
            f"{backbone} resizes images by {steps['resize_mode']} and {steps['interpolation']}, which embedx does not; "
            "choose another backbone"
        )
    resize = (height, height) if steps["resize_mode"] == "squash" else height
    return Preprocessing(resize, height, steps["interpolation"], tuple(steps["mean"]), tuple(steps["std"]))


KIND = BackboneKind(lambda name: name.startswith(PREFIX), find, embeds_texts=True)
