"""Reads the pixels of images that have more than 8 bits, or channels without a stated meaning, as they are stored."""

from __future__ import annotations

import re
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embedx.data.decoding import jxl, tiff
from embedx.data.decoding.eight_bits import CAMERA_BITS, Samples, told
from embedx.data.decoding.opening import open_image
from embedx.data.reading.files import RejectedInputError
from embedx.recipe import PixelOptions


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
            deep = one_channel(image, layout)
            return deep or (read_tiff(data) if _needs_low_bytes(image, options) else None)
        return None
    bits = stated_bits(image, data)
    if bits == 8:
        return None
    if (deep := one_channel(image)) is not None:
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
            f"{told(values)}, multiplied by their alpha, which is not undone at this depth; convert it to PNG"
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


def one_channel(image: Image.Image, layout: tiff.Layout | None = None) -> Samples | None:
    """Returns the one channel of an image that Pillow holds in full; None for others."""
    if image.mode not in ("I", "F", "L") and not image.mode.startswith("I;16"):
        return None
    values = np.asarray(image)
    if layout is not None and image.mode != "F":
        kind = "i" if layout.is_signed else "u"
        wanted = f"{kind}{1 if layout.type_bits <= 8 else 2 if layout.type_bits <= 16 else 4}"
        values = values.astype(wanted, copy=False)
    elif image.mode.startswith("I"):
        values = values.astype(np.uint16, copy=False)
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
    is_rounded = image.format in ("PPM", "JXL")
    return _largest_high_byte(image) < (1 << (CAMERA_BITS - 8)) + is_rounded


def _largest_high_byte(image: Image.Image) -> int:
    """Returns the largest value of an image's colours."""
    colors = image.getbands()[: 3 if image.mode.startswith("RGB") else 1]
    extrema: Any = image.getextrema()
    return int(max(largest for _, largest in (extrema if len(image.getbands()) > 1 else [extrema])[: len(colors)]))


def _deep_color(image: Image.Image, data: bytes) -> Samples:
    """Returns the 16 bits of a picture with several channels, of which Pillow keeps the high bytes."""
    if image.format == "PNG" and data[25] == 4:  # gray and alpha: the same bytes are a picture of four channels
        header = data[12:24] + b"\x08\x06" + data[26:29]
        pairs = open_image(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])
        return Samples(_joined((pairs, slice(0, 4, 2)), (pairs, slice(1, 4, 2))), None, 1, True)
    if image.format == "PNG":
        low = open_image(data)
        tile = low.tile[0]  # type: ignore[attr-defined]
        low.tile = [tile._replace(args=tile.args.replace("16B", "16L"))]  # type: ignore[attr-defined]
        return Samples(_joined((image, slice(None)), (low, slice(None))), None, 3, image.mode == "RGBA")
    if image.format == "PPM" and data.startswith(b"P6"):
        opened = open_image(data).tile[0]  # type: ignore[attr-defined]
        count = image.width * image.height * 3
        values = np.frombuffer(data, ">u2", count, opened.offset).reshape(image.height, image.width, 3)
        return Samples(values.astype(np.uint16), None, 3)
    if image.format == "JXL" and (values := jxl.read(data)).dtype == np.uint16:
        return Samples(values, None, 3 if image.mode.startswith("RGB") else 1, image.mode.endswith("A"))
    colors = 3 if image.mode.startswith("RGB") else 1
    largest = _largest_high_byte(image) * 256 + 255
    raise RejectedInputError(
        f"{colors} channels of 16 bits in {image.format} with values up to {largest} at most, of which only the high "
        "bytes can be read; convert it to PNG or TIFF, or give --pixels bits=16"
    )


def _joined(high: tuple[Image.Image, slice], low: tuple[Image.Image, slice]) -> NDArray[np.uint16]:
    """Returns the numbers of 16 bits whose high and low bytes are these bands of two images, row by row."""
    (image, high_bands), (other, low_bands) = high, low
    channels = len(range(len(image.getbands()))[high_bands])
    values = np.empty((image.height, image.width, channels), np.uint16)
    for row in range(image.height):
        box = (0, row, image.width, row + 1)
        values[row] = np.asarray(image.crop(box))[0, :, high_bands]
        values[row] <<= 8
        values[row] |= np.asarray(other.crop(box))[0, :, low_bands]
    return values
