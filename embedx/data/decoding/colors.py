"""From any 8-bit picture to RGB: the channels to take, the colour profile, and what alpha is composited on."""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image, ImageCms

from embedx.data.decoding.eight_bits import pick
from embedx.recipe import PixelOptions

_DIRECT = {"PA": "RGBA", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB", "1": "L"}
"""The modes that stand for others, of which every conversion is defined."""
_ALPHA = ("LA", "RGBA")
_SPACES = {
    "RGB": ("RGB", ("RGB", "RGBA", "L", "LA")),
    "GRAY": ("L", ("L", "LA")),
    "CMYK": ("CMYK", ("CMYK",)),
    "Lab": ("LAB", ("LAB",)),
}
"""The mode in which a profile is applied, and those of pictures that it can belong to, by its colour space."""


def to_rgb(image: Image.Image, options: PixelOptions) -> Image.Image:
    """Returns a picture in RGB, read as the options say; by default alpha and colour profiles are left out."""
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode in _DIRECT:
        image = image.convert(_DIRECT[image.mode])
    if options.channels is not None:
        image = _picked(image, options.channels)
    if options.background is not None and "transparency" in image.info and image.mode in ("L", "RGB"):
        image = image.convert("RGBA")
    alpha = image.getchannel("A") if options.background is not None and image.mode in _ALPHA else None
    if options.color == "srgb":
        image = _in_srgb(image)
    image = image.convert("RGB")
    if alpha is not None:
        image.putalpha(alpha)
        return Image.alpha_composite(Image.new("RGBA", image.size, options.background), image).convert("RGB")
    return image


def _picked(image: Image.Image, channels: tuple[int, ...]) -> Image.Image:
    direct = image if image.mode in ("L", "RGB", *_ALPHA) else image.convert("RGB")
    values = np.asarray(direct)
    values = pick(values if values.ndim == 3 else values[..., None], channels)
    picked = Image.fromarray(np.ascontiguousarray(values if len(channels) == 3 else values[..., 0]))
    picked.info = {name: value for name, value in image.info.items() if name == "icc_profile"}
    return picked


def _in_srgb(image: Image.Image) -> Image.Image:
    """Converts a picture from its colour profile; one that can't be read or is of other colours counts as none."""
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode, takes = _SPACES[source.profile.xcolor_space.strip()]
        if image.mode not in takes:
            return image
        converted = ImageCms.profileToProfile(image.convert(mode), source, _srgb(), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, KeyError, ValueError, TypeError):
        return image
    return converted or image


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
