"""The bits that a JPEG XL states in its header, and its pixels in full by the package imagecodecs.

Pillow's plugin gives 8 bits of pictures in colour, whatever they have.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedx.data.decoding.extra import import_package

MAGIC = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
_CODESTREAM = b"\xff\x0a"
_SIDE_BITS = (9, 13, 18, 30)
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""The ratios of width to height that a number stands for, from 1 on."""


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._rest = int.from_bytes(data, "little")

    def take(self, count: int) -> int:
        """Returns the next bits, the lowest first, as a number."""
        value = self._rest & ((1 << count) - 1)
        self._rest >>= count
        return value


def stated_bits(data: bytes) -> int | None:
    """Returns the bits of a colour; 8 also for floats, as the plugin scales those, and None if they are not found."""
    bits = _Bits(_codestream(data)[2:64])
    _take_size(bits)
    if bits.take(1):  # all is as by default
        return 8
    if bits.take(1):
        bits.take(3)  # the orientation
        if bits.take(1):
            _take_size(bits)
        if bits.take(1) or bits.take(1):  # a preview or an animation
            return None
    if bits.take(1):
        return 8
    choice = bits.take(2)
    return (8, 10, 12)[choice] if choice < 3 else 1 + bits.take(6)


def size_of(data: bytes) -> tuple[int, int]:
    """Returns the width and height of a JPEG XL, before its orientation is applied.

    Pillow's plugin tells them only once it has decoded the picture.
    """
    return _take_size(_Bits(_codestream(data)[2:64]))


def _take_size(bits: _Bits) -> tuple[int, int]:
    is_small = bits.take(1)

    def side() -> int:
        return 8 * (bits.take(5) + 1) if is_small else bits.take(_SIDE_BITS[bits.take(2)]) + 1

    height = side()
    ratio = bits.take(3)
    if not ratio:
        return side(), height
    times, over = _RATIOS[ratio - 1]
    return height * times // over, height


def _codestream(data: bytes) -> bytes:
    at = 0
    while not data.startswith(_CODESTREAM, at) and at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in (b"jxlc", b"jxlp"):
            at = data.find(_CODESTREAM, at)
            break
        at += length or len(data)
    return data[at : at + 64]


def read(data: bytes) -> NDArray[Any]:
    """Reads the pixels as they are stored.

    Raises:
        RejectedInputError: If the package imagecodecs is not installed.
    """
    imagecodecs = import_package("imagecodecs", "a JPEG XL of 16 bits, which needs")
    return np.asarray(imagecodecs.jpegxl_decode(data))
