"""transformers' AutoModel as `hf:NAME-or-folder`, with the settings of its own image processor.

Its features are the first that the model has of `get_image_features` (in the space that images and texts share, for
models such as CLIP), `pooler_output`, and `last_hidden_state`: tokens or a map, which `--pool` makes a vector of.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from embedx.errors import CheckpointError, ConfigError
from embedx.models.backbones import hub
from embedx.models.backbones.base import Architecture, BackboneKind, BackboneOptions, parameters_on_meta
from embedx.models.backbones.huggingface_text import MODEL_TYPES, HuggingFaceText, tokenizer_of
from embedx.models.backbones.image_processor import preprocessing_of
from embedx.models.text_towers import TextTower, no_texts
from embedx.models.weights.find import OTHER_WEIGHTS, Weights, given_weights, sha256_of
from embedx.models.weights.read import read_state_dict

_PREFIX = "hf:"
_SETTINGS = ("config.json", "*processor_config.json")
_WEIGHTS = (
    ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"),
)
"""The names of a single file, an index, and the index's files; the first choice that is there is taken."""


class ImageFeatures(nn.Module):
    """Wraps a model of transformers: its forward pass goes from images to features.

    The wrapper shares the model's tables of layers and tensors, so that those keep their names, and a layer that is
    replaced in the wrapper is replaced in the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._modules, self._parameters, self._buffers = model._modules, model._parameters, model._buffers
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self.training = model.training
        self._features: Any = getattr(model, "get_image_features", model.forward)
        config: Any = getattr(model, "config", None)
        self._size = getattr(getattr(config, "vision_config", config), "image_size", None)
        self._interpolates = "interpolate_pos_encoding" in inspect.signature(self._features).parameters
        self._name = type(model).__name__

    @property
    def whole(self) -> Any:
        """The model that is wrapped."""
        return self._features.__self__

    def forward(self, images: Tensor) -> Tensor:
        """Computes the features [B, D], tokens [B, T, D] or a map [B, C, H, W] of normalised images [B, 3, H, W]."""
        try:
            options = (
                {"interpolate_pos_encoding": True} if self._interpolates and images.shape[-1] != self._size else {}
            )
            outputs: Mapping[str, Any] = self._features(pixel_values=images, return_dict=True, **options)
        except TypeError as error:
            raise ConfigError(f"{self._name} needs more than images: {error}") from error
        if "mask" in outputs:
            raise ConfigError(f"{self._name} masks images at random, so it has no fixed embedding of them")
        for name in ("pooler_output", "last_hidden_state"):
            value = outputs.get(name)
            if isinstance(value, Tensor):
                return value.flatten(1) if value.shape[2:] == (1, 1) else value
        raise ConfigError(f"{self._name} gives {', '.join(outputs)}, none of which is an embedding")


class HuggingFaceBackbone(Architecture):
    """The model that a folder's config.json describes.

    The files are those of the weights; there are none for random weights, and for those that were not downloaded.
    """

    libraries = ("transformers",)

    def __init__(self, name: str, weights: Weights, folder: Path, files: Sequence[Path]) -> None:
        super().__init__(name, weights, preprocessing_of(folder))
        self.fills = weights.name == "checkpoint"
        self._config = _config(name, folder)
        self._folder = folder
        self._files = files
        # Weights of classifiers lack the pooler, and transformers would make up a random one.
        self._without_pooler = bool(files) and not any("pooler." in name for file in files for name in _tensors(file))

    def build(self) -> tuple[nn.Module, tuple[str, ...]]:
        """Builds the model that the config describes."""
        return self._features(self._create()), ()

    def load(self) -> nn.Module:
        """Builds the model with its weights; transformers matches its own, as it knows the tensors' former names."""
        if self.weights.path is None:
            return super().load()
        if self.fills:
            with contextlib.suppress(CheckpointError):  # such as for former names, which transformers knows
                return super().load()
        return self._load_own()

    def text_tower(self) -> TextTower:
        """Loads the model, of which the text encoder is kept, and the tokenizer that stands beside it."""
        if self._config.model_type not in MODEL_TYPES:
            raise no_texts(self.name, f"is of the type {self._config.model_type}, which embeds images alone")
        repository = None if self._folder == Path(self.name.removeprefix(_PREFIX)) else self.name.removeprefix(_PREFIX)
        tokenizer = tokenizer_of(self._folder, repository)
        features: Any = self.load()
        return HuggingFaceText(self.name, features.whole, tokenizer)

    def _load_own(self) -> nn.Module:
        state: dict[str, Tensor] = {}
        for file in self._files:
            state |= read_state_dict(file)
        with parameters_on_meta():
            kind: Any = type(self._create())
        try:
            with hub.quiet_transformers(), torch.random.fork_rng(devices=[]):
                model, report = kind.from_pretrained(
                    None, config=self._config, state_dict=state, dtype=torch.float32, output_loading_info=True
                )
        except Exception as error:  # transformers has no errors of its own
            raise CheckpointError(f"{self.weights.path} does not fit {self.name}: {error}") from error
        features = self._features(model)
        if missing := sorted(set(report["missing_keys"]) & features.state_dict().keys()):
            message = f"{self.weights.path} does not fit {self.name}: it lacks {len(missing)} of the model's tensors"
            raise CheckpointError(f"{message}, such as {missing[0]}")
        return features

    def _create(self) -> nn.Module:
        import transformers

        with hub.quiet_transformers():
            model: nn.Module = transformers.AutoModel.from_config(self._config, dtype=torch.float32)
            return model

    def _features(self, model: Any) -> nn.Module:
        """Wraps a model of transformers, without a pooler that the weights lack."""
        pooler = getattr(model, "pooler", None)
        if self._without_pooler and pooler is not None and any(True for _ in pooler.parameters()):
            model.pooler = None
        if not hasattr(model, "get_image_features") and model.main_input_name != "pixel_values":
            raise ConfigError(
                f"{self.name} is a {type(model).__name__}, which takes {model.main_input_name}, no images"
            )
        return ImageFeatures(model.eval())


def find(options: BackboneOptions, download: bool) -> HuggingFaceBackbone:
    """Finds a model in a folder, or by its name on the Hugging Face hub."""
    backbone = options.backbone
    hub.require("transformers", extra="hf", backbone=backbone)
    name = backbone.removeprefix(_PREFIX)
    folder = _folder(name, download=download)
    weights = given_weights(options)
    if weights is not None:
        return HuggingFaceBackbone(backbone, weights, folder, [weights.path] if weights.path else [])
    if options.weights != "DEFAULT":
        raise ConfigError(f"--weights {options.weights}: {backbone} has only its own; give DEFAULT or random")
    files = _weights_files(folder)
    if not files and folder == Path(name):
        raise CheckpointError(
            f"{folder} has no weights ({' or '.join(choice[0] for choice in _WEIGHTS)}); {OTHER_WEIGHTS}"
        )
    if not files and download:
        files = _download_weights(name)
    weights = Weights(backbone, folder, sha256_of(files)) if files else Weights(backbone)
    return HuggingFaceBackbone(backbone, weights, folder, files)


def _folder(name: str, *, download: bool) -> Path:
    """Returns the folder of a model's config.json: the named one, or a repository's in the cache."""
    if (folder := Path(name)).is_dir():
        return folder
    if config := hub.cached(name, _SETTINGS[0]):
        return config.parent
    if not download:
        raise ConfigError(f"{_PREFIX}{name}: there is no such folder, and the Hugging Face cache has no such model")
    return hub.download(name, _SETTINGS, advice="or give a folder that holds the model")


def _weights_files(folder: Path) -> list[Path]:
    """Lists the files of a model's weights, in a fixed order; none if one is missing."""
    for single, index, _ in _WEIGHTS:
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            names = sorted(set(json.loads((folder / index).read_text())["weight_map"].values()))
            files = [folder / name for name in names]
            return files if all(file.is_file() for file in files) else []
    return []


def _download_weights(repository: str) -> list[Path]:
    for choice in _WEIGHTS:
        if files := _weights_files(hub.download(repository, choice, advice=f"or {OTHER_WEIGHTS}")):
            return files
    raise CheckpointError(f"{repository} on the Hugging Face hub has no weights for PyTorch; {OTHER_WEIGHTS}")


def _tensors(path: Path) -> set[str]:
    """Returns the names of the tensors in a file of weights."""
    if path.suffix != ".safetensors":
        return set(read_state_dict(path))
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({error})") from error


def _config(name: str, folder: Path) -> Any:
    """Reads a folder's config.json with transformers."""
    import transformers

    try:
        with hub.quiet_transformers():
            return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers has no errors of its own
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"{name} needs code that comes with the model, which embedx never runs; "
                "choose a model that transformers itself knows"
            ) from error
        raise ConfigError(f"{name}: transformers can't read {folder / 'config.json'} ({error})") from error


KIND = BackboneKind(lambda name: name.startswith(_PREFIX), find, embeds_texts=True)
