"""Connectors: which value goes where, said in data instead of code.

A key may be dotted to reach into nested dicts and NamedTuples: `heads.cls.logits`. A key that contains dots
itself, such as a layer's name, is found too: the longest beginning that is a key is taken at each step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from embedx.errors import ConnectorError


class SourceKeyDescription(TypedDict):
    """Where a value stands."""

    key: str
    """Dotted key in the source."""
    source: Literal["data", "prediction"]
    """`data` is what the dataloader yielded, `prediction` what the model returned."""


def data_key(key: str) -> SourceKeyDescription:
    """A value of the batch."""
    return SourceKeyDescription(key=key, source="data")


def pred_key(key: str) -> SourceKeyDescription:
    """A value of the model's outputs."""
    return SourceKeyDescription(key=key, source="prediction")


def remap_pred_keys(
    key_mapping: Mapping[str, SourceKeyDescription], parent_key: str
) -> dict[str, SourceKeyDescription]:
    """The same mapping for a model whose predictions are nested under `parent_key`."""
    return {
        name: pred_key(f"{parent_key}.{source['key']}") if source["source"] == "prediction" else source
        for name, source in key_mapping.items()
    }


def get_field(container: Any, key: str, what: str) -> Any:
    """Reaches into nested dicts and NamedTuples.

    Args:
        container: A mapping or NamedTuple.
        key: Dotted key.
        what: What the container is called in an error.

    Raises:
        ConnectorError: If there is no such key; the message lists the keys there are.
    """
    fields = container._asdict() if hasattr(container, "_asdict") else container
    if not isinstance(fields, Mapping):
        raise ConnectorError(f"{what} is a {type(container).__name__} and has no keys; looked for {key!r}")
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        head, rest = ".".join(parts[:length]), ".".join(parts[length:])
        if head in fields:
            return get_field(fields[head], rest, f"{what}.{head}") if rest else fields[head]
    raise ConnectorError(f"{what} has no key {key!r}; it has {', '.join(map(str, fields)) or 'none'}")


class DataConnector:
    """Batch → model inputs.

    Args:
        key_mapping: For each keyword argument of the model, the batch's key.
    """

    def __init__(self, key_mapping: Mapping[str, str]) -> None:
        self.key_mapping = dict(key_mapping)

    def __call__(self, data: Any) -> dict[str, Any]:
        """The model's keyword arguments.

        Raises:
            ConnectorError: If a key is not there.
        """
        return {name: get_field(data, key, "the batch") for name, key in self.key_mapping.items()}


class _PredictionAndDataConnector:
    def __init__(self, key_mapping: Mapping[str, SourceKeyDescription]) -> None:
        self.key_mapping = dict(key_mapping)
        for name, source in self.key_mapping.items():
            if source["source"] not in ("data", "prediction"):
                raise ConnectorError(
                    f"{name!r} has the source {source['source']!r}; use data_key(...) or pred_key(...)"
                )

    def __call__(self, prediction: Any, data: Any) -> dict[str, Any]:
        """The keyword arguments, from the model's outputs and the batch.

        Raises:
            ConnectorError: If a key is not there.
        """
        return {
            name: get_field(data, source["key"], "the batch")
            if source["source"] == "data"
            else get_field(prediction, source["key"], "the prediction")
            for name, source in self.key_mapping.items()
        }


class LossConnector(_PredictionAndDataConnector):
    """Prediction and batch → loss inputs."""


class CallbackConnector(_PredictionAndDataConnector):
    """Prediction and batch → what a callback works on."""
