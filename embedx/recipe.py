"""All that determines an embedding's numbers, and the one spelling of JSON from which its fingerprint is made."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, cast

from embedx.values import DecoderName, Interpolation, Pooling, Precision, StoredDtype

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From a decoded image to the backbone's input; the torchvision presets' steps, in uint8 until the last."""

    resize: int | tuple[int, int]
    """The shorter side is resized to this many pixels, or height and width to these, antialiased."""
    crop: int
    """Then a centred square of this many pixels is cut out."""
    interpolation: Interpolation
    mean: tuple[float, float, float]
    """Subtracted from the values in [0, 1], per channel."""
    std: tuple[float, float, float]
    """Divided by, per channel."""
    exif: bool = True
    """Whether the EXIF orientation is applied first."""

    def with_image_size(self, size: int | None) -> Preprocessing:
        """The same steps for another input size; the share of the image that is cropped stays."""
        if size is None:
            return self
        resize = self.resize
        scaled = (
            round(resize * size / self.crop)
            if isinstance(resize, int)
            else (round(resize[0] * size / self.crop), round(resize[1] * size / self.crop))
        )
        return dataclasses.replace(self, resize=scaled, crop=size)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that determines an embedding's value (versions and hardware stand beside it, as environment)."""

    backbone: str
    backbone_args: Mapping[str, Any]
    weights: Mapping[str, str | int]
    preprocessing: Preprocessing | None
    layers: tuple[str, ...]
    pooling: Pooling
    normalize: bool
    precision: Precision
    runtime: str
    device: str
    decoder: DecoderName
    batch_size: int
    dtype: StoredDtype

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain JSON values, as the manifest holds it; without a decoder that is the usual one."""
        values = dataclasses.asdict(self)
        if self.decoder == "cpu":
            del values["decoder"]
        return cast(dict[str, Any], json.loads(json.dumps(values)))


def canonical_json(value: Any) -> str:
    """The one spelling of a JSON value: sorted keys, no spaces."""
    return _CANONICAL.encode(value)


def fingerprint(value: Any) -> str:
    """Sha256, in hex, of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
