"""Connectors map keyword arguments to the keys of batches and predictions.

A key may be dotted to reach into nested dicts and NamedTuples: `heads.cls.logits`. A key that contains dots itself,
such as a layer's name, is found too: at each level the longest prefix that is a key counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from embedx.errors import ConnectorError


class SourceKeyDescription(TypedDict):
    """The place of a value."""

    key: str
    """The dotted key in the source."""
    source: Literal["data", "prediction"]
    """`data` for the batch, `prediction` for the model's outputs."""


def data_key(key: str) -> SourceKeyDescription:
    """Describes a value of the batch."""
    return SourceKeyDescription(key=key, source="data")


def pred_key(key: str) -> SourceKeyDescription:
    """Describes a value of the model's outputs."""
    return SourceKeyDescription(key=key, source="prediction")


def remap_pred_keys(
    key_mapping: Mapping[str, SourceKeyDescription], parent_key: str
) -> dict[str, SourceKeyDescription]:
    """Returns the same mapping for a model whose predictions are nested under `parent_key`."""
    return {
        name: pred_key(f"{parent_key}.{source['key']}") if source["source"] == "prediction" else source
        for name, source in key_mapping.items()
    }


def get_field(container: Any, key: str, name: str) -> Any:
    """Returns a value of nested dicts and NamedTuples.

    Args:
        container: A mapping or NamedTuple.
        key: The dotted key.
        name: The container's name in error messages.

    Raises:
        ConnectorError: If there is no such key; the message lists the keys that exist.
    """
    fields = container._asdict() if hasattr(container, "_asdict") else container
    if not isinstance(fields, Mapping):
        raise ConnectorError(f"{name} is a {type(container).__name__} and has no keys; looked for {key!r}")
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        head, rest = ".".join(parts[:length]), ".".join(parts[length:])
        if head in fields:
            return get_field(fields[head], rest, f"{name}.{head}") if rest else fields[head]
    raise ConnectorError(f"{name} has no key {key!r}; it has {', '.join(map(str, fields)) or 'none'}")


class DataConnector:
    """Maps a batch to the model's keyword arguments.

    Args:
        key_mapping: The batch's key for each keyword argument.
    """

    def __init__(self, key_mapping: Mapping[str, str]) -> None:
        self.key_mapping = dict(key_mapping)

    def __call__(self, data: Any) -> dict[str, Any]:
        """Returns the model's keyword arguments; a missing key is a ConnectorError."""
        return {name: get_field(data, key, "the batch") for name, key in self.key_mapping.items()}


class _PredictionAndDataConnector:
    """Maps prediction and batch to keyword arguments; a missing key is a ConnectorError."""

    def __init__(self, key_mapping: Mapping[str, SourceKeyDescription]) -> None:
        self.key_mapping = dict(key_mapping)
        for name, source in self.key_mapping.items():
            if source["source"] not in ("data", "prediction"):
                raise ConnectorError(
                    f"{name!r} has the source {source['source']!r}; use data_key(...) or pred_key(...)"
                )

    def __call__(self, prediction: Any, data: Any) -> dict[str, Any]:
        return {
            name: get_field(data, source["key"], "the batch")
            if source["source"] == "data"
            else get_field(prediction, source["key"], "the prediction")
            for name, source in self.key_mapping.items()
        }


class LossConnector(_PredictionAndDataConnector):
    """Maps prediction and batch to the loss's keyword arguments."""


class CallbackConnector(_PredictionAndDataConnector):
    """Maps prediction and batch to a callback's inputs."""
