"""Decodes a picture by Pillow, or by tifffile, to RGB."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from embedx.data.decoding import tiff
from embedx.data.decoding.colors import to_rgb
from embedx.data.decoding.orientation import opposite, orientation, turn_image
from embedx.data.decoding.samples import Samples, read_samples, read_tiff, to_eight_bits
from embedx.recipe import PixelOptions


def decode_with_pillow(data: bytes, image: Image.Image, *, exif: bool, options: PixelOptions) -> Image.Image:
    """Decodes an image that Pillow has opened.

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
    if samples is None:
        picture, is_upright = to_rgb(image, options), is_tiff
    else:
        picture, is_upright = _rgb(samples, image.info.get("icc_profile"), options), samples.is_upright
    if is_upright:
        return picture if exif else turn_image(picture, opposite(turn))
    return turn_image(picture, turn) if exif else picture


def decode_tiff(data: bytes, *, exif: bool, options: PixelOptions) -> Image.Image:
    """Decodes a TIFF that Pillow does not open; the arguments are those of `decode_with_pillow`."""
    about = tiff.about(data)
    picture = _rgb(read_tiff(data), about.icc_profile, options)
    return turn_image(picture, about.orientation) if exif else picture


def _rgb(samples: Samples, icc_profile: bytes | None, options: PixelOptions) -> Image.Image:
    picture = to_eight_bits(samples, options)
    picture.info = {"icc_profile": icc_profile}
    return to_rgb(picture, dataclasses.replace(options, channels=None))


def to_tensor(image: Image.Image) -> Tensor:
    """Returns the pixels of an RGB image as [3, H, W] uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
