"""Deep and many-channelled pixels to 8 bits: where the file does not say how, a setting does, or the image is rejected.

The values of one file never decide how they are scaled, as the rows of one run would then be read unlike.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embedx.data.decoding import jxl, tiff
from embedx.data.decoding.opening import open_image
from embedx.data.reading.files import RejectedInputError
from embedx.recipe import PixelOptions

_CAMERA_BITS = 14
"""The most bits of a camera whose values are stored as they are in 16 bits."""
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


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


def read_samples(image: Image.Image, data: bytes, options: PixelOptions) -> Samples | None:
    """Returns the pixels of an image that has more than 8 bits or channels without a meaning; None for all others.

    Raises:
        RejectedInputError: If they can't be had.
    """
    if image.format == "TIFF":
        layout = tiff.layout_of(image.tag_v2, big_endian=data.startswith(b"MM"))  # type: ignore[attr-defined]
        if layout.channels > layout.colors + layout.has_alpha or layout.is_misread:
            return read_tiff(data)
        if layout.is_deep:
            deep = _of_mode(image, layout)
            return deep or (read_tiff(data) if _needs_low_bytes(image, options) else None)
        return None
    bits = stated_bits(image, data)
    if bits == 8:
        return None
    if (deep := _of_mode(image, None)) is not None:
        return _with_transparency(deep._replace(bits=bits), image, options)
    if bits is None and _needs_low_bytes(image, options):
        return _with_transparency(_deep_color(image, data), image, options)
    return None


def _with_transparency(samples: Samples, image: Image.Image, options: PixelOptions) -> Samples:
    """Adds the alpha that a PNG states by one transparent colour, where it is composited."""
    clear = image.info.get("transparency")
    if image.format != "PNG" or clear is None or samples.has_alpha or options.background is None:
        return samples
    is_clear = (samples.values == np.asarray(clear, np.uint16)).all(-1, keepdims=True)
    alpha = np.where(is_clear, 0, 65535).astype(np.uint16)
    return samples._replace(values=np.concatenate([samples.values, alpha], axis=-1), has_alpha=True)


def read_tiff(data: bytes) -> Samples:
    """Reads the first picture of a TIFF by the package tifffile."""
    values, layout = tiff.read(data)
    if layout.is_premultiplied and layout.type_bits > 8:
        raise RejectedInputError(
            f"{_told(values)}, multiplied by their alpha, which is not undone at this depth; convert it to PNG"
        )
    return Samples(values, layout.bits, layout.colors, layout.has_alpha, layout.is_white_zero)


def stated_bits(image: Image.Image, data: bytes) -> int | None:
    """Returns the bits that the pixels span, as Pillow scales them; None if they may be any up to 16."""
    if image.format == "PNG":
        return None if data[24] == 16 else 8
    if image.format == "PPM":
        numbers = re.findall(rb"\d+", re.sub(rb"#[^\n]*", b"", data[2:65536])[:100])
        is_deep = data[1:2] in b"2356" and len(numbers) > 2 and int(numbers[2]) > 255
        return (None if int(numbers[2]) == 65535 else 16) if is_deep else 16 if image.mode == "F" else 8
    if image.format == "JPEG2000":
        at = data.find(b"\xff\x4f\xff\x51")
        depth = (data[at + 42] & 0x7F) + 1 if 0 <= at < len(data) - 42 else 8
        return None if depth >= 16 else 16 if depth > 8 else 8
    if image.format == "JXL":
        return None if image.mode in ("I;16", "F") or jxl.stated_bits(data) in (None, 16) else 8
    return 16 if image.mode.startswith(("I", "F")) else 8


def _of_mode(image: Image.Image, layout: tiff.Layout | None) -> Samples | None:
    """Returns the one channel of an image that Pillow holds in full; None for others."""
    if image.mode not in ("I", "F", "L") and not image.mode.startswith("I;16"):
        return None
    values = np.asarray(image)
    if layout is not None and image.mode != "F":
        kind = "i" if layout.is_signed else "u"
        values = values.astype(f"{kind}{1 if layout.type_bits <= 8 else 2 if layout.type_bits <= 16 else 4}")
    elif image.mode.startswith("I"):
        values = values.astype(np.uint16)
    white_zero = layout is not None and layout.is_white_zero
    bits = layout.bits if layout else 16
    return Samples(values[..., None], bits, 1, is_white_zero=white_zero, is_upright=layout is not None)


def _needs_low_bytes(image: Image.Image, options: PixelOptions) -> bool:
    """Tells whether the high bytes of a 16-bit picture, which are what Pillow keeps, are not its reading."""
    if options.bits not in (None, 16) or (image.format, image.mode) == ("JXL", "LA"):  # which the plugin misreads
        return True
    if image.mode == "RGB" and "transparency" in image.info and options.background is not None:
        return True
    if image.mode == "CMYK" or options.bits is not None:
        return False
    high = np.asarray(image)[..., : 3 if image.mode.startswith("RGB") else 1]
    is_rounded = image.format in ("PPM", "JXL")
    return int(high.max(initial=0)) < (1 << (_CAMERA_BITS - 8)) + is_rounded


def _deep_color(image: Image.Image, data: bytes) -> Samples:
    """Returns the 16 bits of a picture with several channels, of which Pillow keeps the high bytes."""
    if image.format == "PNG" and data[25] == 4:  # gray and alpha: the same bytes are a picture of four channels
        header = data[12:24] + b"\x08\x06" + data[26:29]
        fake = open_image(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])
        pairs = np.asarray(fake).astype(np.uint16)
        return Samples(pairs[..., ::2] << 8 | pairs[..., 1::2], None, 1, True)
    if image.format == "PNG":
        low = open_image(data)
        tile = low.tile[0]  # type: ignore[attr-defined]
        low.tile = [tile._replace(args=tile.args.replace("16B", "16L"))]  # type: ignore[attr-defined]
        values = np.asarray(image).astype(np.uint16) << 8 | np.asarray(low)
        return Samples(values, None, 3, image.mode == "RGBA")
    if image.format == "PPM" and data.startswith(b"P6"):
        opened = open_image(data).tile[0]  # type: ignore[attr-defined]
        count = image.width * image.height * 3
        values = np.frombuffer(data, ">u2", count, opened.offset).reshape(image.height, image.width, 3)
        return Samples(values.astype(np.uint16), None, 3)
    if image.format == "JXL" and (values := jxl.read(data)).dtype == np.uint16:
        return Samples(values, None, 3 if image.mode.startswith("RGB") else 1, image.mode.endswith("A"))
    high = np.asarray(image)
    colors = 3 if image.mode.startswith("RGB") else 1
    largest = int(high[..., :colors].max(initial=0)) * 256 + 255
    raise RejectedInputError(
        f"{colors} channels of 16 bits in {image.format} with values up to {largest} at most, of which only the high "
        "bytes can be read; convert it to PNG or TIFF, or give --pixels bits=16"
    )


def to_eight_bits(samples: Samples, options: PixelOptions) -> Image.Image:
    """Returns the pixels as an image of mode L, LA, RGB or RGBA.

    Raises:
        RejectedInputError: If neither the file nor the options say how.
    """
    values, has_alpha = samples.values, samples.has_alpha
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    if values.dtype.kind not in "uif":
        raise RejectedInputError(f"its values are {values.dtype}, which are no pixels; convert it to 16 bits")
    if options.channels is not None:
        values, has_alpha = pick(values, options.channels), False
    elif values.shape[-1] != samples.colors + has_alpha or samples.colors not in (1, 3):
        advice = "channels=0:1:2" if values.shape[-1] > 2 else "channels=0"
        raise RejectedInputError(
            f"{_told(values)}, and nothing says which of them are red, green and blue; name them by --pixels {advice}, "
            "counted from 0"
        )
    colors = values[..., :-1] if has_alpha else values
    pixels = _scaled(colors, samples.bits, options)
    if samples.is_white_zero:
        pixels = 255 - pixels
    if has_alpha:
        pixels = np.concatenate([pixels, _alpha(values[..., -1:], samples.bits or options.bits)], axis=-1)
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))


def pick(values: NDArray[Any], channels: tuple[int, ...]) -> NDArray[Any]:
    """Returns the channels of these numbers of an array [H, W, C]."""
    if max(channels) >= values.shape[-1]:
        raise RejectedInputError(
            f"{_told(values)}: there is none of number {max(channels)}, counted from 0; give others by --pixels"
        )
    return values[..., list(channels)]


def _scaled(values: NDArray[Any], stated: int | None, options: PixelOptions) -> NDArray[np.uint8]:
    if values.dtype.kind != "u" or values.dtype.itemsize > 2:
        return _by_range(values, options)
    if values.dtype.itemsize == 1 and stated is None:
        stated = 8
    bits = stated or options.bits
    largest = int(values.max(initial=0))
    if bits is None and 0 < largest < 1 << _CAMERA_BITS:
        camera = next(bits for bits in (8, 10, 12, 14) if largest < 1 << bits)
        raise RejectedInputError(
            f"{_told(values)}: either a picture of {camera} bits in a file of 16, or a dark one of 16; give --pixels "
            f"bits={camera} or --pixels bits=16"
        )
    bits = bits or 16
    if largest >= 1 << bits:
        raise RejectedInputError(
            f"{_told(values)}, which are more than {bits} bits; give --pixels bits={largest.bit_length()} or more"
        )
    return _from_bits(values, bits)


def _alpha(values: NDArray[Any], bits: int | None) -> NDArray[np.uint8]:
    """Returns alpha, which has the colours' bits unless it holds larger numbers; that of fractions is left out."""
    if values.dtype.kind != "u":
        return np.full(values.shape, 255, np.uint8)
    whole = 8 * values.dtype.itemsize
    fits = bits is not None and int(values.max(initial=0)) < 1 << bits
    return _from_bits(values, bits if bits is not None and fits else whole)


def _from_bits(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    if bits < 8:
        return (values.astype(np.uint16) * 255 // ((1 << bits) - 1)).astype(np.uint8)
    return (values >> (bits - 8)).astype(np.uint8)


def _by_range(values: NDArray[Any], options: PixelOptions) -> NDArray[np.uint8]:
    if not np.isfinite(values).all():
        raise RejectedInputError(f"{_told(values)}, and some are NaN or infinite; replace those in the file first")
    if options.range is None:
        raise RejectedInputError(
            f"{_told(values)}, and nothing says which of them are black and white; give them by --pixels, "
            "such as range=0:1"
        )
    black, white = options.range
    share = (values.astype(np.float64) - black) / (white - black)
    pixels: NDArray[np.uint8] = np.rint(share.clip(0, 1) * 255).astype(np.uint8)
    return pixels


def _told(values: NDArray[Any]) -> str:
    count = values.shape[-1]
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    extremes = (f"{finite.min():g}", f"{finite.max():g}") if finite.size else ("none", "none")
    span = f"values up to {extremes[1]}" if values.dtype.kind == "u" else f"values from {extremes[0]} to {extremes[1]}"
    return f"{count} channel{'s' if count != 1 else ''} of {values.dtype} with {span}"
