"""The layout of a TIFF's pixels, and by the package tifffile those of layouts that Pillow does not read."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedx.data.decoding.extra import INSTALL, import_package
from embedx.data.reading.files import RejectedInputError

_COLORS = {2: 3, 5: 4, 6: 3, 8: 3}
"""The number of colours by photometric interpretation; 1 for all others."""
_ALPHA = (1, 2, 999)
"""The values of ExtraSamples that stand for alpha; 999 is what Corel Draw wrote."""
_PALETTE = 3
_NO_RGB = {
    6: "YCbCr",
    8: "CIELAB",
    9: "ICCLAB",
    10: "ITULAB",
    32803: "those of a sensor's mosaic (CFA)",
    32844: "logarithms of luminance (LogL)",
    32845: "logarithms of luminance (LogLuv)",
}
"""The colours by photometric interpretation that are neither gray nor RGB; Pillow alone converts some."""
_CONVERTED = (7, 33003, 33005)
"""The compressions whose decoders turn YCbCr into RGB."""
_UNSIGNED, _SIGNED = 1, 2
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class Layout(NamedTuple):
    """The facts of a TIFF that say how its pixels are meant."""

    photometric: int
    channels: int
    has_alpha: bool
    is_premultiplied: bool
    type_bits: int
    sample_format: int
    is_misread: bool
    """True for layouts that Pillow takes for others: planes of 16 bits without compression for planes of 8, and
    compressed big-endian numbers of 32 bits or with a sign for little-endian ones."""
    largest: int | None
    """The largest value that a pixel can have, where the file states it."""

    @property
    def colors(self) -> int:
        """The number of channels that are colours."""
        return _COLORS.get(self.photometric, 1)

    @property
    def is_white_zero(self) -> bool:
        """True if low values are bright."""
        return self.photometric == 0

    @property
    def is_signed(self) -> bool:
        """True for whole numbers with a sign."""
        return self.sample_format == _SIGNED

    @property
    def is_deep(self) -> bool:
        """True for anything but unsigned numbers of up to 8 bits."""
        return self.type_bits > 8 or self.sample_format != _UNSIGNED

    @property
    def bits(self) -> int | None:
        """The bits that unsigned values span, as the file states them."""
        if self.type_bits < 16 or self.largest is None:
            return self.type_bits if self.type_bits < 16 else None
        return self.largest.bit_length() if self.largest in (1023, 4095, 16383, 65535) else None


def layout_of(tags: Mapping[int, Any], *, big_endian: bool) -> Layout:
    """Returns the layout that a TIFF's tags describe."""
    first = partial(_first, tags)
    photometric, bits = first(262, 1), first(258, 1)
    extra = tags.get(338, ())
    extra = extra if isinstance(extra, tuple) else (extra,)
    compression, sample_format = first(259, 1), first(339, _UNSIGNED)
    is_deep_plane = first(284, 1) == 2 and bits > 8 and first(277, 1) > 1
    is_swapped = big_endian and bits > 8 and (bits > 16 or sample_format != _UNSIGNED)
    return Layout(
        photometric,
        channels=first(277, 3 if compression in (6, 7) and photometric in (2, 6) else 1),
        has_alpha=bool(extra) and extra[0] in _ALPHA,
        is_premultiplied=bool(extra) and extra[0] == 1,
        type_bits=bits,
        sample_format=sample_format,
        is_misread=is_deep_plane if compression == 1 else is_swapped,
        largest=first(281, 0) or None,
    )


def _first(tags: Mapping[int, Any], tag: int, default: int) -> int:
    value = tags.get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)


def read(data: bytes) -> tuple[NDArray[Any], Layout]:
    """Reads the first picture of a TIFF as an array [H, W, C], as it is stored.

    Raises:
        RejectedInputError: If it can't be read, or a package is missing for it.
    """
    with _open(data) as file:
        page = file.pages[0]
        layout = layout_of({tag.code: tag.value for tag in page.tags.values()}, big_endian=file.byteorder == ">")
        try:
            values = page.asarray(maxworkers=1)
        except (KeyError, ValueError) as error:
            if "imagecodecs" in str(error):
                raise RejectedInputError(
                    f"{_told(page)}, compressed in a way that needs the package imagecodecs; {INSTALL}"
                ) from error
            raise
        axes, colormap = page.axes, page.colormap
        if layout.photometric in _NO_RGB and not (layout.photometric == 6 and int(page.compression) in _CONVERTED):
            raise RejectedInputError(
                f"{_told(page)} whose colours are {_NO_RGB[layout.photometric]}, which are not read in this layout; "
                "convert it to RGB"
            )
    if axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    elif axes == "YX":
        values = values[..., None]
    elif axes != "YXS":
        raise RejectedInputError(f"its axes are {axes}, and only pictures with channels are read")
    if layout.photometric == _PALETTE and colormap is not None and values.shape[-1] == 1:
        high_bytes = (colormap >> 8).astype(np.uint8)  # which are what Pillow takes
        colors = np.moveaxis(high_bytes[:, values[..., 0]], 0, -1)
        return colors, layout._replace(photometric=2, channels=3, type_bits=8)
    return values, layout


def part_pixels(tags: Mapping[int, Any], size: tuple[int, int]) -> int:
    """Returns the pixels of a TIFF's strips or tiles, each of which is decoded as a whole."""
    width, height = size
    if 322 in tags and 323 in tags:
        return _first(tags, 322, width) * _first(tags, 323, height)
    return width * min(height, _first(tags, 278, height))


class Header(NamedTuple):
    """The header of a TIFF that Pillow does not open."""

    tags: dict[int, Any]
    size: tuple[int, int]
    """The width and height, before the orientation is applied."""
    big_endian: bool


def header(data: bytes) -> Header:
    """Reads the header of a TIFF by the package tifffile."""
    with _open(data) as file:
        page = file.pages[0]
        tags = {tag.code: tag.value for tag in page.tags.values()}
        return Header(tags, (page.imagewidth, page.imagelength), file.byteorder == ">")


class About(NamedTuple):
    """The facts of a TIFF's picture beside its layout."""

    orientation: int
    icc_profile: bytes | None


def about(data: bytes) -> About:
    """Returns the orientation and the colour profile of a TIFF that Pillow does not open."""
    with _open(data) as file:
        tags = {tag.code: tag.value for tag in file.pages[0].tags.values() if tag.code in (274, 34675)}
    turn = tags.get(274, 1)
    return About(int(turn) if turn in range(1, 9) else 1, tags.get(34675))


def _open(data: bytes) -> Any:
    tifffile = import_package("tifffile", "a TIFF whose channels, bits or type need")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it warns of, it also raises where it matters
    return tifffile.TiffFile(io.BytesIO(data))


def _told(page: Any) -> str:
    count = page.samplesperpixel
    return f"a TIFF of {count} channel{'s' if count != 1 else ''} of {page.dtype}"
