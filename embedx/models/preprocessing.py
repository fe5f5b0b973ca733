"""Which preprocessing a backbone gets: its weights' own, with what the settings change of it."""

from __future__ import annotations

import dataclasses

from embedx.config import ExtractConfig
from embedx.errors import ConfigError
from embedx.recipe import Preprocessing


def resolve_preprocessing(
    own: Preprocessing | None, config: ExtractConfig, *, fixed_size: int | None = None
) -> Preprocessing:
    """Determines the preprocessing.

    Args:
        own: The weights'; None if nobody knows it.
        config: The settings.
        fixed_size: Height and width of the only images that the backbone takes, if it says so.

    Raises:
        ConfigError: If nobody knows it and the settings do not say it all, or if the steps do not fit each other or
            the backbone.
    """
    if own is None:
        own = _as_told(config, fixed_size)
    given = {
        name: value
        for name in ("resize", "crop", "mean", "std", "interpolation", "exif")
        if (value := getattr(config, name)) is not None
    }
    steps = dataclasses.replace(own.with_image_size(config.image_size), **given)
    shorter = steps.resize if isinstance(steps.resize, int) else min(steps.resize)
    faults = []
    if shorter < steps.crop:
        faults.append(
            f"images resized to {shorter} pixels are too small to cut {steps.crop} out of them; "
            f"give --resize {steps.crop} or more, or a smaller --crop"
        )
    if fixed_size not in (None, steps.crop):
        faults.append(
            f"{config.backbone} takes images of {fixed_size}x{fixed_size}, not {steps.crop}x{steps.crop}; "
            f"give --image-size {fixed_size}"
        )
    ConfigError.check(faults)
    return steps


def _as_told(config: ExtractConfig, fixed_size: int | None) -> Preprocessing:
    size = config.image_size or config.crop or fixed_size
    missing = [
        flag
        for flag, value in (("--image-size", size), ("--mean", config.mean), ("--std", config.std))
        if value is None
    ]
    if size is None or config.mean is None or config.std is None:
        raise ConfigError(
            f"nobody knows which preprocessing {config.backbone} needs; give {' and '.join(missing)} "
            "(and, if they matter, --resize and --interpolation)"
        )
    return Preprocessing(resize=size, crop=size, interpolation="bilinear", mean=config.mean, std=config.std)
