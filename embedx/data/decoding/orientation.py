"""The orientation of a picture, read alike for all formats, decoders and sizes: as Pillow's `exif_transpose` does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

_TAG = 0x0112
_XMP = ("XML:com.adobe.xmp", "xmp")
_STATING = ("exif", "Raw profile type exif", *_XMP)
"""The entries of Pillow's that can state an orientation; a TIFF's stands in a tag of its own."""
_STEPS = {2: (2,), 3: (1, 2), 4: (1,), 5: (), 6: (2,), 7: (1, 2), 8: (1,)}
"""The dimensions of [C, H, W] that are flipped by orientation, after rows and columns have changed places from 5 on."""
_BACK = {6: 8, 8: 6}


def orientation(image: Image.Image) -> int:
    """Returns the orientation of an image, 1 to 8, that EXIF states, or else XMP.

    A value of another type than a number (BYTE, for one) counts as none, as in Pillow and browsers. So does EXIF that
    can't be read, which Pillow raises almost any exception for.
    """
    if image.format != "TIFF" and not any(name in image.info for name in _STATING):
        return 1  # at no cost
    try:
        value = image.getexif().get(_TAG)
    except Exception:  # noqa: BLE001
        value = None
    if value is None and any(name in image.info for name in _XMP):
        value = _by_xmp(image)
    return next((known for known in _STEPS if known == value), 1)


def _by_xmp(image: Image.Image) -> int | None:
    """Returns the orientation in XMP; once EXIF could not be read, Pillow no longer looks for it there."""
    bare = Image.new("1", (1, 1))
    bare.info = {name: image.info[name] for name in _XMP if name in image.info}
    try:
        return bare.getexif().get(_TAG)
    except Exception:  # noqa: BLE001
        return None


def turn_pixels(pixels: Tensor, orientation: int) -> Tensor:
    """Turns pixels [C, H, W] upright that are stored in an orientation."""
    if orientation == 1:
        return pixels
    return (pixels.transpose(1, 2) if orientation >= 5 else pixels).flip(_STEPS[orientation])


def turned_view(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Returns a view of pixels [H, W, C] that are stored in an orientation, in which they stand upright."""
    if orientation == 1:
        return pixels
    changed = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    return np.flip(changed, tuple(dim - 1 for dim in _STEPS[orientation]))


def opposite(orientation: int) -> int:
    """Returns the orientation that undoes the turning of another one."""
    return _BACK.get(orientation, orientation)
