"""The bits that a JPEG XL states in its header, and its pixels in full by the package imagecodecs.

Pillow's plugin gives 8 bits of pictures in colour, whatever they have.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedx.data.decoding.extra import import_package

_CODESTREAM = b"\xff\x0a"
_SIDE_BITS = (9, 13, 18, 30)


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
    _skip_size(bits)
    if bits.take(1):  # all is as by default
        return 8
    if bits.take(1):
        bits.take(3)  # the orientation
        if bits.take(1):
            _skip_size(bits)
        if bits.take(1) or bits.take(1):  # a preview or an animation
            return None
    if bits.take(1):
        return 8
    choice = bits.take(2)
    return (8, 10, 12)[choice] if choice < 3 else 1 + bits.take(6)


def _skip_size(bits: _Bits) -> None:
    is_small = bits.take(1)
    for is_height in (True, False):
        if is_height or not bits.take(3):  # a ratio takes the place of the width
            bits.take(5 if is_small else _SIDE_BITS[bits.take(2)])


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
