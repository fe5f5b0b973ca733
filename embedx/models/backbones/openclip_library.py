"""All that embedx asks of open_clip: its models by name or from a folder, their files and their preprocessing."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from embedx.errors import CheckpointError, ConfigError, unknown
from embedx.models.backbones import hub
from embedx.models.weights.find import OTHER_WEIGHTS

PREFIX = "openclip:"
_LOCAL, _HUB = "local-dir:", "hf-hub:"
"""open_clip's own prefixes of folders, and of repositories on the Hugging Face hub."""
_CONFIG = "open_clip_config.json"
_FILES = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"),
    *("open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"),
)
"""The names of a model's weights in a folder or repository; the first that is there is taken, as open_clip does."""
_PUBLISHED = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""The names in a repository for which open_clip's table has none."""
_SMALL = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
"""The text tower that is built, and dropped, where the image tower alone is wanted."""

_CACHE = "; fill the Hugging Face cache where there is a network, or give a folder that holds the model"


@dataclasses.dataclass(frozen=True)
class OpenClipModel:
    """A model that open_clip knows or a folder describes, with the place of its own weights."""

    backbone: str
    """The text that was given to `--backbone`."""
    name: str
    """The name by which open_clip's functions find it: one of its own, or `local-dir:FOLDER`."""
    tag: str | None = None
    """The name of pretrained weights in open_clip's table."""
    folder: Path | None = None
    """The folder that describes the model; None for open_clip's own."""
    repository: str | None = None
    """The repository OWNER/NAME on the Hugging Face hub of which that is the cached copy."""

    def create(self, *, image_size: int | None = None, image_only: bool = False, device: str = "cpu") -> nn.Module:
        """Builds the model with random weights, in evaluation mode.

        Args:
            image_size: The height and width in pixels of the images; None for the model's own.
            image_only: Whether its text tower is to be a tiny one, which takes no memory.
            device: The device to build it on, cpu or meta.

        Raises:
            ConfigError: If the settings of its text tower, which may be on the hub, can't be had.
        """
        import open_clip

        options: dict[str, Any] = {"force_image_size": image_size} if image_size else {}
        if image_only:
            parts = {"text_cfg", "multimodal_cfg"} & open_clip.get_model_config(self.name).keys()
            options |= {part: dict(_SMALL) for part in parts}
        try:
            # Where tensors are made on meta, a large model takes no time either.
            with quiet(), torch.device(device):
                model: nn.Module = open_clip.create_model(
                    self.name, load_weights=False, pretrained_text=False, device=device, **options
                )
        except (OSError, ImportError) as error:  # of transformers, whose settings some text towers have
            reason = str(error).partition("\n")[0]
            raise ConfigError(f"the text encoder of {self.backbone} can't be built ({reason}){_CACHE}") from error
        return model.eval()

    def tokenizer(self) -> Any:
        """Returns the model's tokenizer: a function of texts and a context length.

        Raises:
            ConfigError: If its files, which may be on the hub, can't be had.
        """
        import open_clip

        try:
            with quiet():
                return open_clip.get_tokenizer(f"{_HUB}{self.repository}" if self.repository else self.name)
        except Exception as error:  # of several libraries
            reason = str(error).partition("\n")[0]
            raise ConfigError(f"the tokenizer of {self.backbone} can't be had ({reason}){_CACHE}") from error

    def load_checkpoint(self, model: nn.Module, path: Path) -> None:
        """Loads a checkpoint into the whole model by open_clip's own function, which knows many former names."""
        import open_clip

        with quiet():
            open_clip.load_checkpoint(model, str(path))

    def image_steps(self) -> dict[str, Any]:
        """Returns open_clip's preprocessing: `size`, `resize_mode`, `interpolation`, `mean` and `std`.

        Without a tag it is that of all the model's tags, if they have one in common, and else open_clip's default.
        """
        import open_clip

        steps = dict(open_clip.get_model_preprocess_cfg(self.create(image_only=True, device="meta")))
        if self.folder is not None:
            return steps
        tags = [self.tag] if self.tag else open_clip.list_pretrained_tags_by_model(self.name)
        stated = [open_clip.get_pretrained_cfg(self.name, tag) for tag in tags]
        given = [{name: each[name] for name in steps if each.get(name) is not None} for each in stated]
        return steps | given[0] if given and all(each == given[0] for each in given) else steps

    def weights_file(self, *, download: bool) -> Path | None:
        """Returns the file of the model's own weights, fetched if `download`; None if it is in no cache.

        Raises:
            ConfigError: If none were named.
            CheckpointError: If there are none, or they can't be fetched.
        """
        import open_clip

        names: Sequence[str] = _FILES
        repository = self.repository
        if self.folder is not None:
            if found := [self.folder / name for name in names if (self.folder / name).is_file()]:
                return found[0]
            if repository is None:
                raise CheckpointError(f"{self.folder} has no weights ({' or '.join(_FILES[:3])}); {OTHER_WEIGHTS}")
        else:
            if self.tag is None:
                tags = _tags(self.name)
                choice = f"give --backbone {PREFIX}{self.name}/TAG, where TAG is one of {', '.join(tags)}; or "
                raise ConfigError(f"{self.backbone} names no weights; {choice if tags else ''}{OTHER_WEIGHTS}")
            repository, _, file = open_clip.get_pretrained_cfg(self.name, self.tag)["hf_hub"].rpartition("/")
            names = (f"{Path(file).stem}.safetensors", file) if file else _PUBLISHED
        return _from_hub(repository, names, download=download)


def model_of(backbone: str, *, download: bool) -> OpenClipModel:
    """Finds a model by NAME/TAG, by its folder, or by `hf-hub:OWNER/NAME`.

    Args:
        backbone: The text that was given to `--backbone`.
        download: Whether a repository's settings may be fetched.

    Raises:
        ConfigError: If there is none, or the tag's weights are for another activation function.
    """
    import open_clip

    text = backbone.removeprefix(PREFIX)
    if text.startswith(_HUB):
        repository = text.removeprefix(_HUB)
        folder = _folder_of(repository, download=download)
        return OpenClipModel(backbone, f"{_LOCAL}{folder}", folder=folder, repository=repository)
    folder = Path(text.removeprefix(_LOCAL))
    if folder.is_dir() or text.startswith(_LOCAL):
        if not (folder / _CONFIG).is_file():
            raise ConfigError(f"--backbone {backbone}: {folder} has no {_CONFIG}, as open_clip writes it")
        return OpenClipModel(backbone, f"{_LOCAL}{folder}", folder=folder)
    name, tag = _name_and_tag(text, open_clip.list_models())
    if name is None:
        known = [f"{PREFIX}{name}" for name in open_clip.list_models()]
        raise ConfigError(unknown("backbone", backbone, known, hint=f"(or there is no folder {text})"))
    if tag is None:
        return OpenClipModel(backbone, name)
    if not open_clip.is_pretrained_cfg(name, tag):
        raise ConfigError(unknown("backbone", backbone, [f"{PREFIX}{name}/{known}" for known in _tags(name)]))
    if not _fits(name, tag):  # of which open_clip itself warns, and computes with the other function
        raise ConfigError(
            f"{backbone} was trained with the activation function QuickGELU, which {name} has not; give --backbone "
            f"{PREFIX}{name}-quickgelu/{tag}"
        )
    return OpenClipModel(backbone, name, tag)


def weights_of_models() -> dict[str, list[str]]:
    """Returns open_clip's models as `openclip:NAME`, each with the tags of its weights, which follow after a slash."""
    import open_clip

    return {f"{PREFIX}{name}": _tags(name) for name in open_clip.list_models()}


def _tags(name: str) -> list[str]:
    """Lists the tags of a model's pretrained weights, without those for another activation function."""
    import open_clip

    return [tag for tag in open_clip.list_pretrained_tags_by_model(name) if _fits(name, tag)]


def _fits(name: str, tag: str) -> bool:
    """Tells whether a tag's weights are for the activation function that the model has."""
    import open_clip

    is_quick = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu")
    return not is_quick or bool(open_clip.get_model_config(name).get("quick_gelu"))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops what open_clip logs, as that weights are random: it uses the root logger, and would set that up."""

    def is_from_elsewhere(record: logging.LogRecord) -> bool:
        return "open_clip" not in Path(record.pathname).parts

    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)
    root.addFilter(is_from_elsewhere)
    try:
        yield
    finally:
        root.removeFilter(is_from_elsewhere)
        root.removeHandler(silent)


def _name_and_tag(text: str, names: Sequence[str]) -> tuple[str | None, str | None]:
    """Splits NAME/TAG; open_clip also writes NAME with a slash, as in ViT-B/32."""
    whole = text.replace("/", "-")
    if whole in names:
        return whole, None
    name, _, tag = text.rpartition("/")
    name = name.replace("/", "-")
    return (name, tag) if name in names else (None, None)


def _folder_of(repository: str, *, download: bool) -> Path:
    if config := hub.cached(repository, _CONFIG):
        return config.parent
    if not download:
        raise ConfigError(f"{PREFIX}{_HUB}{repository}: the Hugging Face cache has no such model")
    folder = hub.download(repository, [_CONFIG], advice="or give a folder that holds the model")
    if not (folder / _CONFIG).is_file():
        raise ConfigError(f"{repository} on the Hugging Face hub has no {_CONFIG}; it is no model of open_clip's")
    return folder


def _from_hub(repository: str, names: Sequence[str], *, download: bool) -> Path | None:
    """Returns the first of a repository's files of these names, fetched if `download`; None if it is in no cache."""
    found = [file for name in names if (file := hub.cached(repository, name))]
    if found or not download:
        return found[0] if found else None
    for name in names:
        if (fetched := hub.download(repository, [name], advice=f"or {OTHER_WEIGHTS}") / name).is_file():
            return fetched
    raise CheckpointError(f"{repository} on the Hugging Face hub has no {' or '.join(names)}; {OTHER_WEIGHTS}")
