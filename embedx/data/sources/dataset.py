"""torchvision's datasets by name: `torchvision:CIFAR10?root=data&train=false`."""

from __future__ import annotations

import contextlib
import inspect
import io
import sys
import typing
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import parse_qsl, quote, urlencode

import numpy as np
import pyarrow as pa
from PIL import Image

from embedx.data.reading.files import RejectedInputError
from embedx.data.sources.base import SINGLE_SPLIT, TARGET, Source, samples_table
from embedx.data.sources.kinds import SourceKind, SourceOptions
from embedx.errors import ConfigError, unknown
from embedx.values import MAX_BYTES

_PREFIX = "torchvision:"
_LABELS = ("targets", "labels", "_labels", "y")
"""The attributes in which torchvision's datasets keep their targets."""
_SAMPLES = ("samples", "_samples")
"""The attributes in which they keep pairs of file and target."""
_MOST_READ = 100_000
"""The largest number of items that are read for their targets, where no attribute has them."""
_NOT_TEXT = frozenset({"self", "transform", "target_transform", "transforms", "loader", "is_valid_file"})
"""The parameters whose values can't be written in a query."""


class DatasetReader:
    """Encodes a dataset's items without loss, RGB and gray as PPM and others as PNG; picklable.

    Each process opens the dataset when it first reads, and downloads nothing.
    """

    def __init__(self, name: str, arguments: Mapping[str, Any]) -> None:
        self.name = name
        self.arguments = {key: value for key, value in arguments.items() if key != "download"}
        self._dataset: Any = None

    def __str__(self) -> str:
        query = urlencode(self.arguments, safe="/", quote_via=quote)
        return f"{_PREFIX}{self.name}{'?' if query else ''}{query}"

    def __reduce__(self) -> tuple[type[Self], tuple[str, Mapping[str, Any]]]:
        return type(self), (self.name, self.arguments)

    def read(self, path: bytes, offset: int | None, size: int | None, most: int = MAX_BYTES) -> bytes:
        """Returns item `offset` as the bytes of an image file.

        Raises:
            RejectedInputError: If the dataset can't give the item, or it is not an image.
        """
        content = io.BytesIO()
        try:
            if self._dataset is None:
                self._dataset = construct(self.name, self.arguments)
            item = self._dataset[offset]
            image = item[0] if isinstance(item, tuple) else item
            if isinstance(image, Image.Image):
                image.save(content, "PPM" if image.mode in ("RGB", "L") else "PNG")
        except Exception as error:  # datasets raise almost anything
            raise RejectedInputError(f"can't be read from the dataset: {type(error).__name__}: {error}") from error
        if not isinstance(image, Image.Image):
            raise RejectedInputError(f"the dataset's item is no image, but of type {type(image).__name__}")
        return content.getvalue()


def items_of(dataset: Any, reader: DatasetReader) -> Source:
    """Returns the items of a dataset as a source, in the dataset's order.

    The key is the item's number. The target is the dataset's own, where that is one whole number per item. Metadata:
    `class`, the name of the target, where the dataset names its classes.
    """
    path, count, targets = str(reader), len(dataset), _targets(dataset)
    classes: dict[int | None, str] = {}
    if targets:
        classes.update((number, str(name)) for number, name in enumerate(getattr(dataset, "classes", None) or ()))

    def scan() -> pa.Table:
        if count == 0:
            raise ConfigError(f"--data {path}: the dataset has no items")
        columns = {
            "key": [f"{number:08d}" for number in range(count)],
            "path": [path.encode()] * count,
            "offset": range(count),
            TARGET: targets,
        }
        names = {"class": list(map(classes.get, targets))} if targets and classes else {}
        return samples_table(columns | names, pa.int64())

    return Source(("class",) if classes else (), reader, scan)


def construct(name: str, arguments: Mapping[str, Any]) -> Any:
    """Constructs a dataset, and sends its prints to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        return getattr(_datasets(), name)(**arguments)


def open_dataset(name: str | None, location: str, options: SourceOptions) -> Mapping[str, Source]:
    """Opens one dataset, which is downloaded only with `download=true`.

    Raises:
        ConfigError: If there is no such dataset, an argument is missing or unknown, or the dataset refuses them.
    """
    dataset, arguments = _arguments(location)
    try:
        opened = construct(dataset, arguments)
    except Exception as error:  # datasets raise almost anything
        parameters = _parameters(getattr(_datasets(), dataset))
        fetch = "add download=true or " if "download" in parameters and not arguments.get("download") else ""
        advice = f"{fetch}correct its arguments ({', '.join(parameters)})"
        raise ConfigError(f"--data {location}: {type(error).__name__}: {error}; {advice}") from error
    return {name or SINGLE_SPLIT: items_of(opened, DatasetReader(dataset, arguments))}


def _arguments(location: str) -> tuple[str, dict[str, Any]]:
    """Parses a location into the dataset's name and arguments.

    Raises:
        ConfigError: If there is no such dataset, or an argument is missing or unknown.
    """
    dataset, _, query = location.removeprefix(_PREFIX).partition("?")
    known = [key for key, value in vars(_datasets()).items() if _is_dataset(value)]
    if dataset not in known:
        raise ConfigError(f"--data {location}: {unknown('dataset of torchvision', dataset, known)}")
    parameters = _parameters(getattr(_datasets(), dataset))
    given = dict(parse_qsl(query.replace("+", "%2B"), keep_blank_values=True))
    faults = [f"unknown argument {key!r}" for key in given if key not in parameters]
    faults += [f"{key} is missing" for key, one in parameters.items() if one.default is one.empty and key not in given]
    ConfigError.check([f"--data {location}: {fault}; {dataset} takes {', '.join(parameters)}" for fault in faults])
    return dataset, {key: _cast(value, parameters[key]) for key, value in given.items()}


def _datasets() -> Any:
    from torchvision import datasets  # only here, as its import takes a second or two

    return datasets


def _is_dataset(value: Any) -> bool:
    base = _datasets().VisionDataset
    return isinstance(value, type) and issubclass(value, base) and value is not base


def _parameters(dataset: type[Any]) -> dict[str, inspect.Parameter]:
    """Returns the constructor's parameters by name, with those of base classes to which it passes `**kwargs` on."""
    found: dict[str, inspect.Parameter] = {}
    for cls in dataset.__mro__:
        if "__init__" not in vars(cls):
            continue
        own = inspect.signature(vars(cls)["__init__"], eval_str=True).parameters
        passes_on = any(one.kind is one.VAR_KEYWORD for one in own.values())
        plain = {key: one for key, one in own.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
        found = {**plain, **found}
        if not passes_on:
            break
    return {key: one for key, one in found.items() if key not in _NOT_TEXT}


def _cast(text: str, parameter: inspect.Parameter) -> Any:
    """Converts a query's text: true, false and numbers to their values, unless the parameter is text."""
    annotation = parameter.annotation
    if str in (annotation, *typing.get_args(annotation)):
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _targets(dataset: Any) -> list[int | None] | None:
    """Returns one number per item, None for an unknown one, or None if the dataset has no such targets."""
    count = len(dataset)
    candidates = [getattr(dataset, name, None) for name in _LABELS]
    for name in _SAMPLES:
        with contextlib.suppress(TypeError, LookupError):
            candidates.append([sample[-1] for sample in getattr(dataset, name, ())])
    for candidate in candidates:
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            labels = np.asarray(candidate)
            if labels.shape == (count,) and labels.dtype.kind in "iu":
                return [label if label >= 0 else None for label in labels.tolist()]
    return _targets_of_items(dataset) if count <= _MOST_READ else None


def _targets_of_items(dataset: Any) -> list[int | None] | None:
    targets: list[int | None] = []
    for number in range(len(dataset)):
        try:
            item = dataset[number]
        except Exception:  # noqa: BLE001  (the reader will reject it with the reason)
            targets.append(None)
            continue
        if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], int)):
            return None
        targets.append(item[1])
    return targets


KIND = SourceKind(
    lambda location: location.startswith(_PREFIX),
    open_dataset,
    reader=lambda location, options: DatasetReader(*_arguments(location)),
)
