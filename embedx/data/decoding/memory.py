"""The memory that decoding an image takes, as its header tells before anything is decoded.

The bytes per pixel were measured, as the peak of a process; a test holds every format to them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

from PIL import Image

from embedx.data.decoding import jxl, tiff
from embedx.data.reading.files import RejectedInputError
from embedx.values import MAX_PIXELS, size_text

PER_PIXEL = 12
"""The bytes per pixel of --max-pixels that a decode may take: 2 GiB by default."""
_RENDERED = 3
_TURNED = 3
_PER_PIXEL = {"WEBP": 18, "AVIF": 23, "HEIF": 20, "JXL": 24, "GIF": 8}
"""The bytes per pixel of formats whose libraries take far more than the pixels."""


class MemoryNeededError(MemoryError):
    """An image needs more memory than it was allowed; nothing of it has been decoded.

    Args:
        needed: The bytes that decoding it takes.
    """

    def __init__(self, needed: int) -> None:
        super().__init__(f"decoding it takes {size_text(needed)}")
        self.needed = needed


_allowed: ContextVar[float] = ContextVar("_allowed", default=float("inf"))


@contextlib.contextmanager
def allow(count: float) -> Iterator[None]:
    """Has images that need more bytes raise a MemoryNeededError within the context, before they are decoded."""
    token = _allowed.set(count)
    try:
        yield
    finally:
        _allowed.reset(token)


def limit(max_pixels: int) -> int:
    """Returns the most bytes that decoding an image may take; fewer pixels than by default do not lower it."""
    return PER_PIXEL * max(max_pixels, MAX_PIXELS)


class Frame(NamedTuple):
    """The size of an image in memory, by its header."""

    width: int
    height: int
    per_pixel: int
    """The bytes that decoding takes per pixel."""
    beside: int = 0
    """The bytes that it takes beside, whatever the picture's size."""


def check(frame: Frame, max_pixels: int) -> None:
    """Checks, before an image is decoded, that it takes no more memory than an image may.

    Raises:
        RejectedInputError: If it takes more than `limit`.
        MemoryNeededError: If it takes more than is allowed at the moment.
    """
    pixels = frame.width * frame.height
    needed, most = pixels * frame.per_pixel + frame.beside, limit(max_pixels)
    if needed > most:
        raise RejectedInputError(
            f"too large: decoding {frame.width}x{frame.height} such pixels takes {size_text(needed)} of memory, "
            f"more than {size_text(most)}; give --max-pixels {-(-needed // PER_PIXEL)} to let such images in"
        )
    if needed > _allowed.get():
        raise MemoryNeededError(needed)


def frame_of(image: Image.Image, data: bytes, *, is_drafted: bool = False) -> Frame:
    """Returns the frame of an opened image; of a JPEG that is decoded as a draft, little is held."""
    if is_drafted:
        return Frame(*image.size, _coefficients(image) + 1)
    if image.format == "TIFF":
        return tiff_frame(image.tag_v2, image.size, big_endian=data.startswith(b"MM"))  # type: ignore[attr-defined]
    return Frame(*image.size, _per_pixel(image, data))


def jxl_frame(data: bytes) -> Frame:
    """Returns the frame of a JPEG XL, which is not opened yet."""
    return Frame(*jxl.size_of(data), _PER_PIXEL["JXL"])


def _per_pixel(image: Image.Image, data: bytes) -> int:
    channels = len(image.getbands())
    if image.format in ("JPEG", "MPO"):
        held = _held(image) if image.mode == "CMYK" else 0
        return held + _RENDERED + max(_coefficients(image), _TURNED)
    if image.format in _PER_PIXEL:
        return _PER_PIXEL[str(image.format)]
    if image.format == "JPEG2000":
        return 7 * channels + _RENDERED
    held = _held(image)
    if image.format == "PNG" and data[24] == 16 and channels > 1:
        return held + max(4 + 2 * channels, _RENDERED)  # low bytes, and both together
    if image.format == "PPM" or held == 2 or image.mode in ("I", "F"):
        return held + 6 + _RENDERED
    return held + _RENDERED


def _coefficients(image: Image.Image) -> int:
    """Returns the bytes per pixel of a JPEG's coefficients, which are held where they come in scans."""
    return 2 * len(image.getbands()) if image.info.get("progressive") else 0


def _held(image: Image.Image) -> int:
    """Returns the bytes per pixel of Pillow's own picture."""
    return {"1": 1, "L": 1, "P": 1}.get(image.mode, 2 if image.mode.startswith("I;16") else 4)


def tiff_frame(tags: Mapping[int, Any], size: tuple[int, int], *, big_endian: bool, is_opened: bool = True) -> Frame:
    """Returns the frame of a TIFF; a strip or tile is held whole beside the picture.

    Args:
        tags: The tags' values, by number.
        size: The width and height.
        big_endian: Whether its numbers are.
        is_opened: Whether Pillow has opened it, and holds its picture too.
    """
    layout = tiff.layout_of(tags, big_endian=big_endian)
    stored = layout.channels * -(-layout.type_bits // 8)
    is_read_by_tifffile = layout.is_deep or layout.channels > layout.colors + layout.has_alpha
    per_pixel = (4 if is_opened else 0) + (stored if is_read_by_tifffile else 0) + _RENDERED
    return Frame(*size, per_pixel, beside=stored * tiff.part_pixels(tags, size))
