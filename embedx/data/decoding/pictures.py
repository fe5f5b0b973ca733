"""Renders a picture that Pillow or tifffile has read as RGB, strip by strip, so that no second copy of it is needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from embedx.data.decoding import tiff
from embedx.data.decoding.colors import to_rgb
from embedx.data.decoding.eight_bits import Samples, to_eight_bits
from embedx.data.decoding.orientation import opposite, orientation, turned_view
from embedx.data.decoding.samples import one_channel, read_samples, read_tiff
from embedx.recipe import PixelOptions

_STRIP_PIXELS = 1 << 18
"""The pixels of a strip; in fractions of 64 bits it takes a few megabytes."""


def decode_with_pillow(data: bytes, image: Image.Image, *, exif: bool, options: PixelOptions) -> Tensor:
    """Decodes an image that Pillow has opened to [3, H, W] uint8.

    Args:
        data: The file's bytes.
        image: The opened image.
        exif: Whether to turn it as its orientation says.
        options: The reading of deep pixels, further channels, alpha and colour profiles.
    """
    is_tiff = image.format == "TIFF"
    if not is_tiff:  # whose loading applies the orientation, and forgets it
        image.load()
    turn = orientation(image)
    samples = read_samples(image, data, options)
    is_upright = is_tiff if samples is None else samples.is_upright
    turn = (1 if exif else opposite(turn)) if is_upright else (turn if exif else 1)
    if samples is not None:
        return _render_samples(samples, turn, image.info.get("icc_profile"), options)
    image.load()
    return render(image, turn, options)


def pixels_in_memory(image: Image.Image, *, exif: bool, options: PixelOptions) -> Tensor:
    """Returns the pixels [3, H, W] uint8 of an image that Pillow holds; the arguments are as for `decode_with_pillow`.

    How many bits its deep pixels span is not known, as no file tells it.
    """
    image.load()  # which turns a TIFF
    turn = orientation(image) if exif else 1
    deep = one_channel(image) if image.mode.startswith(("I", "F")) else None
    if deep is None:
        return render(image, turn, options)
    return _render_samples(deep._replace(bits=None), turn, image.info.get("icc_profile"), options)


def decode_tiff(data: bytes, *, exif: bool, options: PixelOptions) -> Tensor:
    """Decodes a TIFF that Pillow does not open; the arguments are those of `decode_with_pillow`."""
    about = tiff.about(data)
    return _render_samples(read_tiff(data), about.orientation if exif else 1, about.icc_profile, options)


def render(image: Image.Image, turn: int, options: PixelOptions) -> Tensor:
    """Returns the pixels of an image, read as the options say and turned, as [3, H, W] uint8."""

    def strip(top: int, bottom: int) -> Image.Image:
        is_whole = (top, bottom) == (0, image.height)
        return to_rgb(image if is_whole else image.crop((0, top, image.width, bottom)), options)

    return _render(image.height, image.width, turn, strip)


def _render_samples(samples: Samples, turn: int, icc_profile: bytes | None, options: PixelOptions) -> Tensor:
    rows, direct = to_eight_bits(samples, options), dataclasses.replace(options, channels=None)

    def strip(top: int, bottom: int) -> Image.Image:
        picture = rows(top, bottom)
        picture.info = {"icc_profile": icc_profile}
        return to_rgb(picture, direct)

    height, width = samples.values.shape[:2]
    return _render(height, width, turn, strip)


def _render(height: int, width: int, turn: int, strip: Callable[[int, int], Image.Image]) -> Tensor:
    """Puts strips, each an RGB image of the rows from the one number to the other, in their turned places."""
    upright = np.empty((width, height, 3) if turn >= 5 else (height, width, 3), np.uint8)
    stored = turned_view(upright, opposite(turn))
    rows = max(1, _STRIP_PIXELS // max(1, width))
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        stored[top:bottom] = np.asarray(strip(top, bottom))
    return torch.from_numpy(upright).permute(2, 0, 1)
