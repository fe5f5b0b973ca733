"""The recipe of an embedding, that is all that determines its value, with canonical JSON and the fingerprint."""

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
    """The steps from a decoded image to the backbone's input, as in torchvision's presets; in uint8 until the last."""

    resize: int | tuple[int, int]
    """The length in pixels to which the shorter side is resized, or height and width; antialiased."""
    crop: int
    """The side in pixels of the centred square that is cut out after resizing."""
    interpolation: Interpolation
    mean: tuple[float, float, float]
    """The mean of R, G and B, in [0, 1], which is subtracted."""
    std: tuple[float, float, float]
    """The standard deviation of R, G and B, by which the difference is divided."""
    exif: bool = True
    """True if the EXIF orientation is applied first."""
    crop_first: float | None = None
    """The share of the shorter side that a centred square has which is cut out before resizing; None without one."""

    def with_image_size(self, size: int | None) -> Preprocessing:
        """Returns the same steps for another input size: `crop` becomes `size`, and `resize` is scaled along."""
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
    """All that determines an embedding's value; versions and hardware are recorded beside it, as the environment."""

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
        """Returns the recipe as plain JSON values, as the manifest holds it; a `cpu` decoder is left out."""
        values = dataclasses.asdict(self)
        if self.preprocessing is not None and self.preprocessing.crop_first is None:
            del values["preprocessing"]["crop_first"]
        if self.decoder == "cpu":
            del values["decoder"]
        return cast(dict[str, Any], json.loads(json.dumps(values)))


def canonical_json(value: Any) -> str:
    """Returns the one spelling of a JSON value that is hashed and compared: sorted keys, no spaces."""
    return _CANONICAL.encode(value)


def fingerprint(value: Any) -> str:
    """Returns the sha256, in hex, of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
