"""transformers' AutoModel as `hf:NAME-or-folder`, with the settings of its own image processor.

Its features are, in this order, `get_image_features` of models that also know text, such as CLIP (in the space that
images and texts share), `pooler_output`, or `last_hidden_state`: tokens or a map, which `--pool` makes a vector of.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from embedx.config import ExtractConfig
from embedx.errors import CheckpointError, ConfigError
from embedx.models.backbones import hub
from embedx.models.backbones.base import Architecture, BackboneKind, parameters_on_meta
from embedx.models.weights.read import Weights, given_weights, read_state_dict
from embedx.recipe import Preprocessing
from embedx.values import Interpolation

_PREFIX = "hf:"
_SETTINGS = ("config.json", "*processor_config.json")
_WEIGHTS = (
    ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"),
)
"""One file, or an index of several, and those; the first that there are."""
_INTERPOLATIONS: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}
"""By Pillow's numbers, in which image processors give them."""
_INSTEAD = "load weights of your own with --checkpoint FILE, or try things out with --weights random"
_CONVNEXT_SQUASHED = 384
"""Size from which ConvNeXt's image processor squashes images instead of cropping them."""
_TOLERANCE = 3.0
"""Of 255: by how much two ways of the same preprocessing may differ, rounding included."""


class ImageFeatures(nn.Module):
    """Put before a model's class: its forward pass from images to features, its tensors keeping their names."""

    def forward(self, images: Tensor) -> Tensor:
        """Computes the features of normalised images [B, 3, H, W].

        Returns:
            [B, D], tokens [B, T, D] or a map [B, C, H, W].
        """
        features = getattr(self, "get_image_features", super().forward)
        try:
            outputs: Mapping[str, Any] = features(pixel_values=images, return_dict=True)
        except TypeError as error:
            raise ConfigError(f"{type(self).__name__} needs more than images: {error}") from error
        if "mask" in outputs:
            raise ConfigError(f"{type(self).__name__} masks images at random, so it has no fixed embedding of them")
        for name in ("pooler_output", "last_hidden_state"):
            value = outputs.get(name)
            if isinstance(value, Tensor):
                return value.flatten(1) if value.shape[2:] == (1, 1) else value
        raise ConfigError(f"{type(self).__name__} gives {', '.join(outputs)}, none of which is an embedding")


class AutoModel(Architecture):
    """What a folder's config.json describes.

    Args:
        name: As it is given to `--backbone`.
        folder: Where its config.json is.
        weights: Its own, whose path is the folder; a checkpoint's; or random ones.
        files: What the weights are in; none for random ones, and for those that have not been downloaded.
    """

    libraries = ("transformers",)

    def __init__(self, name: str, folder: Path, weights: Weights, files: Sequence[Path]) -> None:
        self.name = name
        self.weights = weights
        self.preprocessing = _preprocessing(folder)
        self._config = _config(name, folder)
        self._files = files
        # Weights of classifiers lack it, and transformers would make up a random one.
        self._without_pooler = bool(files) and not any("pooler." in name for file in files for name in _tensors(file))

    def build(self) -> tuple[nn.Module, tuple[str, ...]]:
        """The model that the config describes."""
        return self._features(self._create()), ()

    def load(self) -> nn.Module:
        """The model with its weights, which transformers matches: it knows what tensors were called before."""
        if self.weights.path is None:
            return super().load()
        state: dict[str, Tensor] = {}
        for file in self._files:
            state |= read_state_dict(file)
        with parameters_on_meta():
            kind: Any = type(self._create())
        try:
            with _quiet(), torch.random.fork_rng(devices=[]):
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

        with _quiet():
            model: nn.Module = transformers.AutoModel.from_config(self._config, dtype=torch.float32)
            return model

    def _features(self, model: Any) -> nn.Module:
        """Makes a model of transformers one from images to features."""
        pooler = getattr(model, "pooler", None)
        if self._without_pooler and pooler is not None and any(True for _ in pooler.parameters()):
            model.pooler = None
        if not hasattr(model, "get_image_features") and model.main_input_name != "pixel_values":
            raise ConfigError(
                f"{self.name} is a {type(model).__name__}, which takes {model.main_input_name}, no images"
            )
        model.__class__ = type(type(model).__name__, (ImageFeatures, type(model)), {})
        features: nn.Module = model.eval()
        return features


def find(config: ExtractConfig, download: bool) -> AutoModel:
    """Finds a model in a folder, or by its name on the Hugging Face hub."""
    hub.require("transformers", extra="hf", backbone=config.backbone)
    name = config.backbone.removeprefix(_PREFIX)
    folder = _folder(name, download=download)
    weights = given_weights(config)
    if weights is not None:
        return AutoModel(config.backbone, folder, weights, [weights.path] if weights.path else [])
    if config.weights != "DEFAULT":
        raise ConfigError(f"--weights {config.weights}: {config.backbone} has but its own; give DEFAULT or random")
    files = _weights_files(folder)
    if not files and folder == Path(name):
        raise CheckpointError(f"{folder} has no weights ({' or '.join(choice[0] for choice in _WEIGHTS)}); {_INSTEAD}")
    if not files and download:
        files = _download_weights(name)
    weights = Weights(config.backbone, folder, hub.digest(files)) if files else Weights(config.backbone)
    return AutoModel(config.backbone, folder, weights, files)


def _folder(name: str, *, download: bool) -> Path:
    """Where the config.json of a model is: the folder itself, or a repository's in the cache."""
    if (folder := Path(name)).is_dir():
        return folder
    if config := hub.cached(name, _SETTINGS[0]):
        return config.parent
    if not download:
        raise ConfigError(f"{_PREFIX}{name}: there is no such folder, and the Hugging Face cache has no such model")
    return hub.download(name, _SETTINGS, advice="or give a folder that holds the model")


def _weights_files(folder: Path) -> list[Path]:
    """The files of a model's weights, in a fixed order; none if they are not all there."""
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
        if files := _weights_files(hub.download(repository, choice, advice=f"or {_INSTEAD}")):
            return files
    raise CheckpointError(f"{repository} on the Hugging Face hub has no weights for PyTorch; {_INSTEAD}")


def _tensors(path: Path) -> set[str]:
    """Names of the tensors in a file of weights."""
    if path.suffix != ".safetensors":
        return set(read_state_dict(path))
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({error})") from error


def _config(name: str, folder: Path) -> Any:
    """What a folder's config.json says, if transformers knows such models."""
    import transformers

    try:
        with _quiet():
            return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers has no errors of its own
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"{name} needs code that comes with the model, which embedx never runs; "
                "choose a model that transformers itself knows"
            ) from error
        raise ConfigError(f"{name}: transformers can't read {folder / 'config.json'} ({error})") from error


def _preprocessing(folder: Path) -> Preprocessing | None:
    """A folder's image processor in embedx's words; None if it has none, or one that does something else."""
    import transformers

    try:
        with _quiet():
            processor = transformers.AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError):  # none, one unknown, or one that is code of the model's own
        return None
    steps = _steps(processor.to_dict())
    return steps if steps and _agree(steps, processor) else None


def _steps(settings: Mapping[str, Any]) -> Preprocessing | None:
    """What an image processor's settings seem to say; None if they say nothing of a fixed square."""
    geometry = _geometry(settings)
    interpolation = _INTERPOLATIONS.get(settings.get("resample", -1))
    if geometry is None or interpolation is None:
        return None
    # The processor's values are uint8 · rescale_factor; a Preprocessing's are uint8 / 255.
    scale = 255 * settings["rescale_factor"] if settings.get("do_rescale") else 255.0
    scale = 1.0 if math.isclose(scale, 1) else scale
    normalized = settings.get("do_normalize")
    mean = [value / scale for value in (settings["image_mean"] if normalized else (0.0, 0.0, 0.0))]
    std = [value / scale for value in (settings["image_std"] if normalized else (1.0, 1.0, 1.0))]
    if len(mean) != 3 or len(std) != 3:
        return None
    return Preprocessing(
        resize=geometry[0],
        crop=geometry[1],
        interpolation=interpolation,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
    )


def _geometry(settings: Mapping[str, Any]) -> tuple[int | tuple[int, int], int] | None:
    """To which size images are resized, and of how many pixels the square is that is cropped then."""
    size = settings.get("size")
    if not size or not settings.get("do_resize"):
        return None
    edge, height, width = (size.get(key) for key in ("shortest_edge", "height", "width"))
    if edge and "crop_pct" in settings:
        return ((edge, edge) if edge >= _CONVNEXT_SQUASHED else int(edge / settings["crop_pct"])), edge
    crop = settings["crop_size"] if settings.get("do_center_crop") else size
    if not crop.get("height") or crop["height"] != crop.get("width"):
        return None
    if edge:
        return edge, crop["height"]
    return ((height, width), crop["height"]) if height and width else None


def _agree(steps: Preprocessing, processor: Any) -> bool:
    """Whether an image processor does these steps: some do more, or other things, than their settings say.

    Tried on a smooth image, on which the way that pixels are interpolated makes no difference.
    """
    down, across = torch.linspace(0, 255, 300).view(-1, 1), torch.linspace(0, 255, 400)
    pixels = torch.stack([down.expand(300, 400), across.expand(300, 400), (down + across) / 2]).to(torch.uint8)
    try:
        with _quiet():
            theirs = processor(pixels, return_tensors="pt")["pixel_values"]
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError):
        return False
    resize = [steps.resize] if isinstance(steps.resize, int) else list(steps.resize)
    resized = transforms.resize(pixels, resize, interpolation=InterpolationMode(steps.interpolation), antialias=True)
    ours = transforms.center_crop(resized, [steps.crop, steps.crop])
    std = torch.tensor(steps.std).view(3, 1, 1)
    scaled = (theirs[0] * std + torch.tensor(steps.mean).view(3, 1, 1)) * 255
    return scaled.shape == ours.shape and bool((scaled - ours).abs().max() <= _TOLERANCE)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """While this lasts, transformers shows no progress and no reports; what matters of them becomes an error."""
    from transformers.utils import logging

    verbosity, progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()


KIND = BackboneKind(lambda name: name.startswith(_PREFIX), find)
