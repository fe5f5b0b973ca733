"""Decodes images into small pictures of them, with what tells dark, blurry, tiny and odd-shaped ones."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from embedx.data.decoding.batch_rows import DenseDecoder
from embedx.data.decoding.images import decode
from embedx.data.decoding.opening import only_own_limits, open_image
from embedx.recipe import AS_STATED, PixelOptions, Preprocessing
from embedx.values import MAX_PIXELS

_JUDGED_SIDE = 256
"""The length in pixels to which the shorter side is shrunk before sharpness is measured, which depends on the size."""
_HEAD = np.dtype([("size", "i4", 2), ("shown", "i4", 2), ("brightness", "f4"), ("sharpness", "f4")])
_LUMA = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
"""The weights of R, G and B in luma (ITU-R BT.601)."""
_LAPLACE = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]).view(1, 1, 3, 3)


class Picture(NamedTuple):
    """A small picture of an image, and some facts of the image."""

    pixels: Tensor
    """[3, h, w] uint8, RGB."""
    width: int
    """The image's width in pixels, as it is shown."""
    height: int
    """The image's height in pixels, as it is shown."""
    brightness: float
    """The mean luma, from 0 (black) to 1 (white)."""
    sharpness: float
    """The variance of the Laplacian of luma (0 to 255), with the shorter side shrunk to 256 pixels.

    Pech-Pacheco et al. 2000, Diatom autofocusing in brightfield microscopy; little of it means blurred, or empty."""


class ThumbnailDecoder(DenseDecoder):
    """Decodes images into rows of bytes, which `unpack` reads.

    Args:
        pixels: The length of a small picture's longer side; images that are smaller keep their size.
        max_pixels: The largest number of pixels that an image may have.
        options: The reading of deep pixels, further channels, alpha and colour profiles.
    """

    entry = "thumbnails"

    def __init__(self, pixels: int, max_pixels: int = MAX_PIXELS, options: PixelOptions = AS_STATED) -> None:
        self.pixels = pixels
        self.max_pixels = max_pixels
        self.options = options

    def empty(self, batch_size: int) -> Tensor:
        """Returns an uninitialised tensor [B, L] uint8."""
        return torch.empty(batch_size, _HEAD.itemsize + 3 * self.pixels**2, dtype=torch.uint8)

    def decode_into(self, row: Tensor, data: bytes) -> None:
        """Decodes an image into its row [L]; raises a RejectedInputError if it can't be decoded."""
        side = max(_JUDGED_SIDE, self.pixels)
        steps = Preprocessing(side, side, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        image = decode(data, max_pixels=self.max_pixels, steps=steps, options=self.options)
        small = _shrunk(image, self.pixels / max(image.shape[1:]))
        luma = (_shrunk(image, _JUDGED_SIDE / min(image.shape[1:])) * _LUMA).sum(dim=0)
        edges = functional.conv2d(luma[None, None], _LAPLACE) if min(luma.shape) >= 3 else torch.zeros(1)
        head = np.zeros(1, _HEAD)
        head["size"], head["shown"] = _size(data, image), small.shape[1:]
        head["brightness"], head["sharpness"] = luma.mean().item() / 255, edges.var(correction=0).item()
        packed = torch.cat([torch.from_numpy(head.view(np.uint8)), small.round().clamp(0, 255).byte().flatten()])
        row[: len(packed)] = packed


def unpack(row: Tensor) -> Picture:
    """Returns what a row [L] uint8 of ThumbnailDecoder holds."""
    head = row[: _HEAD.itemsize].numpy().view(_HEAD)[0]
    height, width = map(int, head["shown"])
    pixels = row[_HEAD.itemsize :][: 3 * height * width].view(3, height, width)
    shown = (int(head["size"][1]), int(head["size"][0]))
    return Picture(pixels, *shown, float(head["brightness"]), float(head["sharpness"]))


def _shrunk(image: Tensor, scale: float) -> Tensor:
    """Shrinks an image [3, H, W] by a factor to floats, antialiased; one of 1 or more changes no size."""
    if scale >= 1:
        return image.float()
    height, width = (max(1, round(side * scale)) for side in image.shape[1:])
    resized: Tensor = functional.interpolate(
        image[None].float(), (height, width), mode="bilinear", antialias=True, align_corners=False
    )[0]
    return resized


def _size(data: bytes, image: Tensor) -> tuple[int, int]:
    """Returns the height and width of an image that may have been decoded at a smaller size."""
    height, width = image.shape[1:]
    with contextlib.suppress(Exception), only_own_limits():  # no other reader of headers knows every format
        stated = open_image(data).size
        width, height = stated if (stated[0] >= stated[1]) == (width >= height) else stated[::-1]
    return height, width
