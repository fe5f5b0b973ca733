"""Deep and many-channelled pixels to 8 bits: where the file does not say how, a setting does, or the image is rejected.

The values of one file never decide how they are scaled, as the rows of one run would then be read unlike.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embedx.data.reading.files import RejectedInputError
from embedx.recipe import PixelOptions

CAMERA_BITS = 14
"""The most bits of a camera whose values are stored as they are in 16 bits."""
_Scale = Callable[[NDArray[Any]], NDArray[np.uint8]]


class Samples(NamedTuple):
    """The pixels of an image as they are stored."""

    values: NDArray[Any]
    """[H, W, C]."""
    bits: int | None
    """The bits that the values span, as the file states them; None if they may be any up to those of the type."""
    colors: int
    """The number of channels that are colours, by the file's own account."""
    has_alpha: bool = False
    """True if the channel behind the colours is alpha; further ones have no stated meaning."""
    is_white_zero: bool = False
    is_upright: bool = False
    """True if reading has applied the orientation."""


def to_eight_bits(samples: Samples, options: PixelOptions) -> Callable[[int, int], Image.Image]:
    """Returns the function that makes the rows from one number to another an image of mode L, LA, RGB or RGBA.

    Raises:
        RejectedInputError: If neither the file nor the options say how.
    """
    values, has_alpha = samples.values, samples.has_alpha
    if values.dtype.kind == "b":
        values = values.view(np.uint8)
    if values.dtype.kind not in "uif":
        raise RejectedInputError(f"its values are {values.dtype}, which are no pixels; convert it to 16 bits")
    if options.channels is not None:
        values, has_alpha = pick(values, options.channels), False
    elif values.shape[-1] != samples.colors + has_alpha or samples.colors not in (1, 3):
        advice = "channels=0:1:2" if values.shape[-1] > 2 else "channels=0"
        raise RejectedInputError(
            f"{told(values)}, and nothing says which of them are red, green and blue; name them by --pixels {advice}, "
            "counted from 0"
        )
    colors = values[..., :-1] if has_alpha else values
    alpha = values[..., -1:]
    scale = _scaling(colors, samples.bits, options)
    scale_alpha = _alpha_scaling(alpha, samples.bits or options.bits) if has_alpha else None

    def rows(top: int, bottom: int) -> Image.Image:
        pixels = scale(colors[top:bottom])
        if samples.is_white_zero:
            pixels = 255 - pixels
        if scale_alpha is not None:
            pixels = np.concatenate([pixels, scale_alpha(alpha[top:bottom])], axis=-1)
        return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))

    return rows


def pick(values: NDArray[Any], channels: tuple[int, ...]) -> NDArray[Any]:
    """Returns the channels of these numbers of an array [H, W, C]; a view of it where they are evenly spaced."""
    if max(channels) >= values.shape[-1]:
        which = told(values).partition(" with ")[0]  # the values may be those of a strip
        raise RejectedInputError(
            f"{which}: there is none of number {max(channels)}, counted from 0; give others by --pixels"
        )
    steps = {after - before for before, after in itertools.pairwise(channels)} or {1}
    if len(steps) > 1 or 0 in steps:
        return values[..., list(channels)]
    end = channels[-1] + (step := steps.pop())
    return values[..., channels[0] : end if end >= 0 else None : step]


def _scaling(values: NDArray[Any], stated: int | None, options: PixelOptions) -> _Scale:
    if values.dtype.kind != "u" or values.dtype.itemsize > 2:
        return _range_scaling(values, options)
    if values.dtype.itemsize == 1 and stated is None:
        stated = 8
    bits = stated or options.bits
    largest = int(values.max(initial=0))
    if bits is None and 0 < largest < 1 << CAMERA_BITS:
        camera = next(bits for bits in (8, 10, 12, 14) if largest < 1 << bits)
        raise RejectedInputError(
            f"{told(values)}: either a picture of {camera} bits in a file of 16, or a dark one of 16; give --pixels "
            f"bits={camera} or --pixels bits=16"
        )
    bits = bits or 16
    if largest >= 1 << bits:
        raise RejectedInputError(
            f"{told(values)}, which are more than {bits} bits; give --pixels bits={largest.bit_length()} or more"
        )
    return _bits_scaling(bits)


def _alpha_scaling(values: NDArray[Any], bits: int | None) -> _Scale:
    """Scales alpha, which has the colours' bits unless it holds larger numbers; that of fractions is left out."""
    if values.dtype.kind != "u":
        return lambda rows: np.full(rows.shape, 255, np.uint8)
    fits = bits is not None and int(values.max(initial=0)) < 1 << bits
    return _bits_scaling(bits if bits is not None and fits else 8 * values.dtype.itemsize)


def _bits_scaling(bits: int) -> _Scale:
    if bits < 8:
        return lambda rows: (rows.astype(np.uint16) * 255 // ((1 << bits) - 1)).astype(np.uint8)
    return lambda rows: (rows >> (bits - 8)).astype(np.uint8)


def _range_scaling(values: NDArray[Any], options: PixelOptions) -> _Scale:
    if not all(np.isfinite(extreme) for extreme in (values.min(initial=0), values.max(initial=0))):  # NaN is passed on
        raise RejectedInputError(f"{told(values)}, and some are NaN or infinite; replace those in the file first")
    if options.range is None:
        raise RejectedInputError(
            f"{told(values)}, and nothing says which of them are black and white; give them by --pixels, "
            "such as range=0:1"
        )
    black, white = options.range

    def scale(rows: NDArray[Any]) -> NDArray[np.uint8]:
        share = (rows.astype(np.float64) - black) / (white - black)
        pixels: NDArray[np.uint8] = np.rint(share.clip(0, 1) * 255).astype(np.uint8)
        return pixels

    return scale


def told(values: NDArray[Any]) -> str:
    """Says of which type and size the values of some channels are."""
    count = values.shape[-1]
    extremes = ("none", "none")
    if values.dtype.kind == "f":
        finite, last = np.isfinite(values), values.dtype.type(np.inf)
        if finite.any():
            lowest, highest = values.min(where=finite, initial=last), values.max(where=finite, initial=-last)
            extremes = (f"{lowest:g}", f"{highest:g}")
    elif values.size:
        extremes = (f"{values.min():g}", f"{values.max():g}")
    span = f"values up to {extremes[1]}" if values.dtype.kind == "u" else f"values from {extremes[0]} to {extremes[1]}"
    return f"{count} channel{'s' if count != 1 else ''} of {values.dtype} with {span}"
