"""The preprocessing of a backbone's images: that of its weights, with the changes that the settings ask for."""

from __future__ import annotations

import dataclasses
import math
from typing import Self

from embedx.config import ExtractConfig
from embedx.errors import ConfigError
from embedx.recipe import Preprocessing, parse_pixels
from embedx.values import Interpolation


@dataclasses.dataclass(frozen=True)
class PreprocessingOptions:
    """The settings that change the preprocessing; the fields are those of ExtractConfig."""

    backbone: str
    image_size: int | None = None
    resize: int | tuple[int, int] | None = None
    crop: int | None = None
    crop_pct: float | None = None
    crop_first: bool = False
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: Interpolation | None = None
    exif: bool = True
    pixels: str = ""

    @classmethod
    def of(cls, config: ExtractConfig) -> Self:
        """Takes the options from the whole configuration."""
        return cls(**{field.name: getattr(config, field.name) for field in dataclasses.fields(cls)})


def resolve_preprocessing(
    own: Preprocessing | None, options: PreprocessingOptions, *, fixed_size: int | None = None
) -> Preprocessing:
    """Determines the preprocessing.

    Args:
        own: The preprocessing that goes with the weights; None if it is unknown.
        options: The changes that were asked for.
        fixed_size: The height and width in pixels of the only images that the backbone takes, if it has such.

    Raises:
        ConfigError: If neither the weights nor the settings say it all, or if the steps do not fit each other or the
            backbone.
    """
    if own is None:
        own = _given_alone(options, fixed_size)
    given = {
        name: value
        for name in ("resize", "crop", "mean", "std", "interpolation", "exif")
        if (value := getattr(options, name)) is not None
    }
    steps = dataclasses.replace(own.with_image_size(options.image_size), pixels=parse_pixels(options.pixels), **given)
    if options.crop_pct is not None:
        steps = dataclasses.replace(steps, resize=_enlarged(steps, options.crop_pct))
    shorter = steps.resize if isinstance(steps.resize, int) else min(steps.resize)
    faults = []
    if shorter < steps.crop:
        faults.append(
            f"images resized to {shorter} pixels are too small to cut {steps.crop} out of them; "
            f"give --resize {steps.crop} or more, or a smaller --crop"
        )
    if fixed_size not in (None, steps.crop):
        faults.append(
            f"{options.backbone} takes images of {fixed_size}x{fixed_size}, not {steps.crop}x{steps.crop}; "
            f"give --image-size {fixed_size}"
        )
    ConfigError.check(faults)
    if options.crop_first:
        share = options.crop_pct or steps.crop / shorter
        steps = dataclasses.replace(steps, resize=steps.crop, crop_first=share)
    return steps


def _enlarged(steps: Preprocessing, share: float) -> int | tuple[int, int]:
    """Returns the size to resize to so that the crop is a share of it, as timm rounds it."""
    side = math.floor(steps.crop / share)
    return side if isinstance(steps.resize, int) else (side, side)


def _given_alone(options: PreprocessingOptions, fixed_size: int | None) -> Preprocessing:
    """Makes the preprocessing from the settings alone."""
    size = options.image_size or options.crop or fixed_size
    required = (("--image-size", size), ("--mean", options.mean), ("--std", options.std))
    if size is None or options.mean is None or options.std is None:
        missing = [flag for flag, value in required if value is None]
        raise ConfigError(
            f"the preprocessing of {options.backbone} is unknown; give {' and '.join(missing)} "
            "(and, if they matter, --resize and --interpolation)"
        )
    return Preprocessing(resize=size, crop=size, interpolation="bilinear", mean=options.mean, std=options.std)
