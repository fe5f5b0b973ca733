"""The recipe of an embedding, that is all that determines its value, with canonical JSON and the fingerprint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from embedx.values import DecoderName, Interpolation, Pooling, Precision, StoredDtype

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


@dataclasses.dataclass(frozen=True)
class PixelOptions:
    """The reading of pixels that are not plain 8-bit RGB or gray; without a value, an image that needs it is rejected.

    An exception are `background` and `color`, without which alpha and colour profiles are left out.
    """

    bits: int | None = None
    """The bits that whole numbers of 16 bits without a sign span."""
    channels: tuple[int, ...] | None = None
    """The channels, counted from 0, that become red, green and blue; or one, which becomes gray."""
    range: tuple[float, float] | None = None
    """The values that become black and white, of floats, numbers with a sign and those of 32 bits."""
    background: str | None = None
    """The colour on which alpha is composited, as `#rrggbb` or a name."""
    color: str | None = None
    """The colour space to which embedded colour profiles are converted."""

    def to_json(self) -> dict[str, int | str | list[int] | list[float]]:
        """Returns the values that are set."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        return {name: value for name, value in values.items() if value is not None}

    def __str__(self) -> str:
        """Returns the text that `parse_pixels` reads."""
        texts = {
            name: ":".join(f"{part!r}" for part in value) if isinstance(value, list) else value
            for name, value in self.to_json().items()
        }
        return ",".join(f"{name}={text}" for name, text in texts.items())


AS_STATED = PixelOptions()
"""The reading where no setting says otherwise."""
_T = TypeVar("_T")
_BACKGROUNDS = ("white", "black", "gray")


def parse_pixels(text: str) -> PixelOptions:
    """Reads settings such as `bits=12,channels=0:1:2,range=0:1,background=white,color=srgb`.

    Raises:
        ValueError: If a key or a value is none of these settings.
    """
    options = PixelOptions()
    for part in filter(None, (part.strip() for part in str(text).split(","))):
        key, _, value = part.partition("=")
        if key not in _PIXEL_VALUES:
            raise ValueError(f"{part!r} is none of its settings, which are {', '.join(_PIXEL_VALUES)}")
        if getattr(options, key) is not None:
            raise ValueError(f"{key} is given twice in {text!r}")
        read, example = _PIXEL_VALUES[key]
        try:
            options = dataclasses.replace(options, **{key: read(value)})
        except ValueError as error:
            raise ValueError(f"{part!r} can't be; write it like {example}") from error
    return options


def pixels_text(text: str) -> str:
    """Returns the one spelling of settings that `parse_pixels` reads."""
    return str(parse_pixels(text))


def pixel_faults(text: str) -> list[str]:
    """Returns what is wrong with settings of pixels, as a message."""
    try:
        parse_pixels(text)
    except ValueError as error:
        return [f"--pixels: {error}"]
    return []


def _bits(text: str) -> int:
    return _checked(int(text), 8 <= int(text) <= 16)


def _channel_numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(":"))
    return _checked(numbers, len(numbers) in (1, 3) and min(numbers) >= 0)


def _range(text: str) -> tuple[float, float]:
    black, white = (float(part) for part in text.split(":"))
    return _checked((black, white), black != white and math.isfinite(black) and math.isfinite(white))


def _background(text: str) -> str:
    return _checked(text.lower(), text.lower() in _BACKGROUNDS or bool(re.fullmatch("#[0-9a-fA-F]{6}", text)))


def _color(text: str) -> str:
    return _checked(text.lower(), text.lower() == "srgb")


def _checked(value: _T, is_right: bool) -> _T:
    if not is_right:
        raise ValueError(value)
    return value


_PIXEL_VALUES: dict[str, tuple[Callable[[str], Any], str]] = {
    "bits": (_bits, "bits=12, from 8 to 16"),
    "channels": (_channel_numbers, "channels=0:1:2 or channels=0, counted from 0"),
    "range": (_range, "range=0:1, black and white"),
    "background": (_background, "background=white, or black, gray, #rrggbb"),
    "color": (_color, "color=srgb"),
}
"""The reader of each setting's value, and an example of it."""


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
    pixels: PixelOptions = AS_STATED
    """The reading of deep pixels, further channels, alpha and colour profiles."""

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
        """Returns the recipe as plain JSON values, as the manifest holds it; what is as by default is left out."""
        values = dataclasses.asdict(self)
        if self.preprocessing is not None and self.preprocessing.crop_first is None:
            del values["preprocessing"]["crop_first"]
        if self.preprocessing is not None:
            del values["preprocessing"]["pixels"]
            if pixels := self.preprocessing.pixels.to_json():
                values["preprocessing"]["pixels"] = pixels
        if self.decoder == "cpu":
            del values["decoder"]
        return cast(dict[str, Any], json.loads(json.dumps(values)))


def canonical_json(value: Any) -> str:
    """Returns the one spelling of a JSON value that is hashed and compared: sorted keys, no spaces."""
    return _CANONICAL.encode(value)


def fingerprint(value: Any) -> str:
    """Returns the sha256, in hex, of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
