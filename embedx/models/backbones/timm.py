"""timm's models as `timm:NAME` or `timm:NAME.TAG`, without their classifier.

They return the features of timm's `create_model(NAME, num_classes=0)`: pooled [B, D], or the tokens of the few models
that timm itself does not pool.
"""

from __future__ import annotations

import contextlib
import copy
import math
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from embedx.errors import CheckpointError, ConfigError, unknown
from embedx.models.backbones import hub
from embedx.models.backbones.base import Architecture, BackboneKind, BackboneOptions
from embedx.models.weights.find import OTHER_WEIGHTS, Weights, cache_path, given_weights, weights_of_file
from embedx.recipe import Preprocessing

_PREFIX = "timm:"
_FILES = ("model.safetensors", "pytorch_model.bin")
"""The files of a repository that may hold its weights, unless its entry in timm's registry says otherwise."""


class TimmBackbone(Architecture):
    """A model by its entry in timm's registry, built for an image size if the model is for one size only."""

    libraries = ("timm",)

    def __init__(self, name: str, weights: Weights, registered: Any, image_size: int | None) -> None:
        super().__init__(name, weights, _preprocessing(name, registered))
        self.fills = weights.name == "checkpoint"
        self._registered = registered
        self._options = {"img_size": image_size} if image_size and registered.fixed_input_size else {}

    def for_size(self, image_size: int) -> Self:
        """Returns the same model, to be built for another size."""
        other = copy.copy(self)
        other._options = {"img_size": image_size} if self._registered.fixed_input_size else {}
        return other

    def build(self) -> tuple[nn.Module, tuple[str, ...]]:
        """Builds the model without its classifier."""
        model = self._create()
        classifiers = self._registered.classifier or ()
        classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
        return model, tuple(_removed_part(model, classifier) for classifier in classifiers)

    def outline(self) -> nn.Module:
        """Builds the model with its buffers on the meta device too, as some builders of timm run parts of the model."""
        with torch.device("meta"):
            return self.build()[0]

    def building(self) -> contextlib.AbstractContextManager[None]:
        """Leaves the parameters of a model that is loaded on the CPU, for the same reason."""
        return torch.random.fork_rng(devices=[])

    def load(self) -> nn.Module:
        """Builds the model with its weights; timm reads its own, and fits them to the image size."""
        if self.weights.path is None or self.fills:
            return super().load()
        source = {"file": str(self.weights.path), "custom_load": False}
        try:
            with torch.random.fork_rng(devices=[]), _loading() as (_, missing):
                model = self._create(pretrained=True, pretrained_cfg_overlay=source)
        except Exception as error:  # timm has no errors of its own, and what it reads may be damaged
            message = f"{self.weights.path}: timm can't load it as {self.weights.name} ({error})"
            raise CheckpointError(message) from error
        if lacking := [name for name, _ in model.named_parameters() if name in missing]:
            message = f"{self.weights.path}: is not {self.weights.name}; it lacks {len(lacking)} tensors of the model"
            raise CheckpointError(f"{message}, such as {lacking[0]}; remove the file, and it is fetched again")
        return model

    def translate(self, model: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        """Translates by timm's own filter for this model, which knows the originals' names and its own former ones."""
        try:
            with torch.random.fork_rng(devices=[]), _loading() as (states, _):
                if any("/" in name for name in state):
                    return self._of_arrays()
                self._create(pretrained=True, pretrained_cfg_overlay={"state_dict": dict(state)})
        except Exception:  # noqa: BLE001  (the filters expect their own originals, and raise anything on others)
            pass
        return states[-1] if states else None

    def _of_arrays(self) -> Mapping[str, Tensor] | None:
        """Reads a file of JAX's arrays by timm's own function for this model; None if that leaves tensors unset."""
        model = self._create()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(math.nan)
        model.load_pretrained(str(self.weights.path))  # type: ignore[operator]
        unset = any(parameter.isnan().any() for parameter in model.parameters())
        return None if unset else model.state_dict()

    def _create(self, **options: Any) -> nn.Module:
        import timm

        name = self.name.removeprefix(_PREFIX)
        model: nn.Module = timm.create_model(name, num_classes=0, **self._options, **options)
        return model.eval()


def find(options: BackboneOptions, download: bool) -> TimmBackbone:
    """Finds a model by its name in timm's registry."""
    backbone = options.backbone
    hub.require("timm", extra="timm", backbone=backbone)
    registered = _registered(backbone)
    weights = given_weights(options)
    if weights is None:
        if options.weights != "DEFAULT":
            tags = [name.partition(".")[2] for name in _tagged(registered.architecture)]
            raise ConfigError(
                f"--weights {options.weights}: the weights of {_PREFIX} models are part of their name; give "
                f"--backbone {_PREFIX}{registered.architecture}.TAG, where TAG is one of {', '.join(tags) or 'none'}"
            )
        weights = _own_weights(backbone, registered, download=download)
    return TimmBackbone(backbone, weights, registered, options.image_size)


def _registered(backbone: str) -> Any:
    """Returns a backbone's entry in timm's registry."""
    import timm

    name = backbone.removeprefix(_PREFIX)
    architecture = name.partition(".")[0]
    architectures = timm.list_models()
    if architecture not in architectures:
        raise ConfigError(unknown("backbone", backbone, [f"{_PREFIX}{known}" for known in architectures]))
    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        valid = [f"{_PREFIX}{known}" for known in _tagged(architecture)]
        raise ConfigError(unknown("backbone", backbone, valid, hint=f"(or {_PREFIX}{architecture})")) from error


def _tagged(architecture: str) -> list[str]:
    """Lists the pretrained weights of an architecture, as NAME.TAG."""
    import timm

    return list(timm.list_models(f"{architecture}.*", pretrained=True))


def weights_of_models() -> dict[str, list[str]]:
    """Returns timm's models as `timm:NAME`, each with the tags of its pretrained weights, which follow after a dot."""
    import timm

    models: dict[str, list[str]] = {f"{_PREFIX}{name}": [] for name in timm.list_models()}
    for name in timm.list_models(pretrained=True):
        architecture, _, tag = name.partition(".")
        models.setdefault(f"{_PREFIX}{architecture}", []).append(tag)
    return models


def _own_weights(backbone: str, registered: Any, *, download: bool) -> Weights:
    if not registered.has_weights:
        raise ConfigError(f"timm has no weights for {backbone}; {OTHER_WEIGHTS}")
    path = _file(backbone, registered, download=download)
    name = f"timm/{registered.architecture}.{registered.tag}"
    return weights_of_file(name, path) if path else Weights(name)


def _file(backbone: str, registered: Any, *, download: bool) -> Path | None:
    """Returns the file of a model's own weights, fetched if `download`; None if it is in no cache."""
    repository = registered.hf_hub_id
    if not repository:
        path = cache_path(registered.url)
        if not path.is_file() and download:
            raise CheckpointError([f"{backbone}: put {registered.url} at", f"{path},", f"or {OTHER_WEIGHTS}"])
        return path if path.is_file() else None
    names = (registered.hf_hub_filename,) if registered.hf_hub_filename else _FILES
    found = [file for name in names if (file := hub.cached(repository, name))]
    if found or not download:
        return found[0] if found else None
    for name in names:
        if (fetched := hub.download(repository, [name], advice=f"or {OTHER_WEIGHTS}") / name).is_file():
            return fetched
    raise CheckpointError(f"{repository} on the Hugging Face hub has no {' or '.join(names)}; {OTHER_WEIGHTS}")


def _preprocessing(backbone: str, registered: Any) -> Preprocessing:
    """Translates the evaluation transform of timm's `create_transform` into a Preprocessing."""
    import timm.data

    steps: Mapping[str, Any] = timm.data.resolve_data_config(pretrained_cfg=registered.to_dict())
    _, height, width = steps["input_size"]
    if height != width:
        raise ConfigError(f"{backbone} takes images of {height}x{width}; embedx feeds square ones only")
    if steps["crop_mode"] not in ("center", "squash"):
        raise ConfigError(
            f"{backbone} wants images with a border (crop mode {steps['crop_mode']}), which embedx does not add; "
            "choose another backbone"
        )
    size = math.floor(height / steps["crop_pct"])
    resize = (size, size) if steps["crop_mode"] == "squash" else size
    return Preprocessing(resize, height, steps["interpolation"], tuple(steps["mean"]), tuple(steps["std"]))


@contextlib.contextmanager
def _loading() -> Iterator[tuple[list[Mapping[str, Tensor]], set[str]]]:
    """Collects the state dicts that this thread gives to models, and the names that they lack: those stay random."""
    load = nn.Module.load_state_dict
    states: list[Mapping[str, Tensor]] = []
    missing: set[str] = set()
    thread = threading.get_ident()

    def load_and_note(self: nn.Module, state: Mapping[str, Tensor], *args: Any, **options: Any) -> Any:
        if threading.get_ident() != thread:  # which loads weights of its own
            return load(self, state, *args, **options)
        states.append(state)
        result = load(self, state, *args, **options)
        missing.update(result.missing_keys)
        return result

    nn.Module.load_state_dict = load_and_note  # type: ignore[method-assign,assignment]
    try:
        yield states, missing
    finally:
        nn.Module.load_state_dict = load  # type: ignore[method-assign]


def _removed_part(model: nn.Module, classifier: str) -> str:
    """Returns the largest module around the classifier that was removed with it; its norm may be gone too."""
    tensors = model.state_dict()
    part = classifier
    while (parent := part.rpartition(".")[0]) and not any(name.startswith(f"{parent}.") for name in tensors):
        part = parent
    return part


KIND = BackboneKind(lambda name: name.startswith(_PREFIX), find)
