"""Decodes an image's bytes into the pixels that the backbone takes, in uint8.

torchvision.io decodes most images, Pillow the rest: PNG, CMYK, BMP, TIFF and so on.
An image without a defined conversion to 8-bit RGB, or a truncated one, is rejected with its reason, never guessed.
"""

from __future__ import annotations

import contextlib
import io
import platform
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional
from torchvision.io import ImageReadMode, decode_image

from embedx.data.decoding.batch_rows import DenseDecoder
from embedx.data.reading.files import RejectedInputError
from embedx.recipe import Preprocessing
from embedx.values import MAX_PIXELS

Image.init()
_FORMATS: list[str] = [
    name
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA")
    if name in Image.OPEN
]
"""The formats that are read. Pillow knows more; one of them, EPS, would run the file in an interpreter."""
_NATIVE = {("JPEG", "RGB"), ("JPEG", "L"), ("MPO", "RGB"), ("WEBP", "RGB"), ("WEBP", "RGBA")}
"""The pairs of format and mode, in Pillow's terms, that torchvision.io decodes to the same pixels as Pillow.

PNG is left out: on damaged files that decoder ends the whole process (seen with torchvision 0.29).
"""
_FAST_BYTES = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() == "aarch64"
_RESIZES_BYTES = ("bilinear", "bicubic") if _FAST_BYTES else ("bicubic",)
"""The interpolations that torch computes in uint8 on this CPU, not in float32; torchvision makes the same choice."""
_DRAFTED_FROM = 8
"""The factor by which a JPEG must be larger than needed to be decoded as a draft; below it a draft saves no time."""
_DRAFT_AT_LEAST = 2
"""The factor by which a draft is at least larger than needed; pixels then differ by less than one level on average."""
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_END_OF_JPEG = b"\xff\xd9"
_ORIENTATION = 0x0112
"""The EXIF tag of the orientation."""
_NATIVE_EXIF = {"JPEG", "MPO"}
"""The formats in which torchvision.io applies the EXIF orientation."""


class ImageDecoder(DenseDecoder):
    """Decodes images into rows of a uint8 batch; those of more than `max_pixels`, also once resized, are rejected."""

    entry = "images"

    def __init__(self, preprocessing: Preprocessing, max_pixels: int = MAX_PIXELS) -> None:
        self.preprocessing = preprocessing
        self.max_pixels = max_pixels

    def empty(self, batch_size: int) -> Tensor:
        """Returns an uninitialised batch [B, 3, H, W] uint8, channels last in memory."""
        size = self.preprocessing.crop
        return torch.empty(batch_size, size, size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)

    def decode_into(self, row: Tensor, data: bytes) -> None:
        """Decodes an input's bytes into its row [3, H, W]; raises a RejectedInputError if they can't be decoded."""
        row.copy_(preprocess(self.decode(data), self.preprocessing, max_pixels=self.max_pixels))

    def decode(self, data: bytes) -> Tensor:
        """Decodes an input's bytes to [3, H, W] uint8, which is still to be resized, as `decode` does."""
        return decode(data, exif=self.preprocessing.exif, max_pixels=self.max_pixels, steps=self.preprocessing)


def decode(
    data: bytes, *, exif: bool = True, max_pixels: int = MAX_PIXELS, steps: Preprocessing | None = None
) -> Tensor:
    """Decodes an image, or the first picture of an animation or a multi-page file.

    Args:
        data: The file's bytes.
        exif: Whether to apply the EXIF orientation.
        max_pixels: The largest number of pixels it may have.
        steps: The preprocessing to follow, if known: a JPEG that it shrinks a lot is decoded at the resized size.

    Returns:
        [3, H, W] uint8, RGB.

    Raises:
        RejectedInputError: If it is too large, truncated, or has no defined conversion to 8-bit RGB.
        MemoryError: If memory is too short to decode it.
    """
    if not data:
        raise RejectedInputError("the file is empty")
    with _only_own_limits():
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            if image.width * image.height > max_pixels:
                raise RejectedInputError(f"too large: {_too_many(image.width, image.height, max_pixels)}")
            if steps is not None and (pixels := _decode_draft(image, steps, exif=exif)) is not None:
                return pixels
            if (pixels := _decode_native(data, image, exif=exif)) is not None:
                return pixels
            return _decode_with_pillow(image, exif=exif)
        except UnidentifiedImageError as error:
            raise RejectedInputError(f"not an image of a known format (it begins with {data[:8]!r})") from error
        except (RejectedInputError, MemoryError):
            raise
        except Exception as error:  # Pillow's plugins raise almost anything on damaged files
            raise RejectedInputError(f"can't be decoded: {error}") from error


@contextlib.contextmanager
def _only_own_limits() -> Iterator[None]:
    """Silences Pillow's warnings and lifts its limit on pixels within the context; both apply to the whole process.

    The warnings concern files that Pillow then decodes, or refuses by an error.
    """
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _too_many(width: int, height: int, allowed: int) -> str:
    pixels = width * height
    return f"{width}x{height} = {pixels} pixels, more than --max-pixels {allowed}; raise it to let such images in"


def _is_drafted(image: Image.Image, steps: Preprocessing) -> bool:
    needed = steps.resize
    is_far_larger = isinstance(needed, int) and min(image.size) >= _DRAFTED_FROM * needed
    return image.format == "JPEG" and is_far_larger and steps.crop_first is None


def _decode_draft(image: Image.Image, steps: Preprocessing, *, exif: bool) -> Tensor | None:
    """Decodes a JPEG far larger than needed at a fraction of its size and resizes that; returns None for any other.

    The inverse cosine transform then yields fewer pixels, which are means of the full image's.
    """
    needed, (width, height) = steps.resize, image.size
    if not (isinstance(needed, int) and _is_drafted(image, steps)):
        return None
    draft = image.draft(None, (_DRAFT_AT_LEAST * needed, _DRAFT_AT_LEAST * needed))
    if draft is None:
        return None
    _, box = draft  # the part of the draft that is image: its last row and column may reach beyond
    size = width * needed // min(width, height), height * needed // min(width, height)
    resized = image.convert("RGB").resize(size, _RESAMPLING[steps.interpolation], box)
    if exif:
        resized = ImageOps.exif_transpose(resized)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def _decode_native(data: bytes, image: Image.Image, *, exif: bool) -> Tensor | None:
    """Decodes by torchvision.io; returns None for an image that it is not used for, or fails on."""
    if (image.format, image.mode) not in _NATIVE:
        return None
    if exif and "exif" in image.info and image.format not in _NATIVE_EXIF:
        return None
    if exif and b"Orientation" in image.info.get("xmp", b""):
        return None  # only Pillow reads that orientation
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        pixels = decode_image(encoded, mode=ImageReadMode.RGB, apply_exif_orientation=exif)
    except RuntimeError:
        return None  # Pillow has the last word, and the better messages
    return pixels if pixels.dtype == torch.uint8 and pixels.ndim == 3 else None


def is_plain_jpeg(data: bytes, steps: Preprocessing, max_pixels: int = MAX_PIXELS) -> bool:
    """Tells whether every JPEG decoder gives the pixels of `decode`: a whole, upright gray or YCbCr JPEG of usual size.

    Only the headers and the last bytes are examined.
    """
    if not data.rstrip(b"\0").endswith(_END_OF_JPEG):
        return False
    with _only_own_limits():
        try:
            image = Image.open(io.BytesIO(data), formats=["JPEG"])
            upright = not steps.exif or (
                image.getexif().get(_ORIENTATION, 1) == 1 and b"Orientation" not in image.info.get("xmp", b"")
            )
            _resized(image.height, image.width, steps, max_pixels)
        except Exception:  # noqa: BLE001  (`decode` will say what is wrong)
            return False
    usual = image.width * image.height <= max_pixels and not _is_drafted(image, steps)
    usual &= image.info.get("adobe_transform") != 0  # 0 stands for RGB
    return upright and usual and (image.format, image.mode) in (("JPEG", "RGB"), ("JPEG", "L"))


def _decode_with_pillow(image: Image.Image, *, exif: bool) -> Tensor:
    image.load()
    if exif:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # The high byte, which is also what Pillow keeps of 16-bit RGB.
        array = (np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)
        return torch.from_numpy(array).expand(3, -1, -1)
    if image.mode in ("I", "F"):
        raise RejectedInputError(f"pixels of mode {image.mode} have no defined 8-bit range; convert the file first")
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def preprocess(pixels: Tensor, steps: Preprocessing, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Resizes and crops an image [3, H, W] uint8 to [3, crop, crop] uint8 as the torchvision presets do.

    Raises:
        RejectedInputError: If the image is so elongated that it would have more than `max_pixels` once resized.
    """
    if steps.crop_first is not None:
        pixels = _central_square(pixels, steps.crop_first)
    height, width = pixels.shape[-2:]
    new_height, new_width = _resized(height, width, steps, max_pixels)
    if (new_height, new_width) != (height, width):
        pixels = resize(pixels, new_height, new_width, steps.interpolation)
    return _center_crop(pixels, steps.crop)


def _resized(height: int, width: int, steps: Preprocessing, max_pixels: int) -> tuple[int, int]:
    """Returns the height and width to which an image is resized; rejects one that would have too many pixels."""
    if not isinstance(steps.resize, int):
        return steps.resize
    new_height, new_width = (side * steps.resize // min(height, width) for side in (height, width))
    if new_width * new_height > max_pixels:
        raise RejectedInputError(
            f"too elongated: {width}x{height}, resized to {_too_many(new_width, new_height, max_pixels)}"
        )
    return new_height, new_width


def resize(pixels: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    """Resizes an image [3, H, W] uint8 as torchvision.transforms.v2 does, whose import takes longer than torch's.

    It is antialiased, by bilinear or bicubic interpolation; on a CUDA device in float32, the only way there.
    """
    one = pixels.permute(1, 2, 0).unsqueeze(0).permute(0, 3, 1, 2)  # keeps the layout in memory recognisable
    native = pixels.device.type == "cpu" and interpolation in _RESIZES_BYTES
    resized = functional.interpolate(
        one if native else one.float(), (height, width), mode=interpolation, antialias=True
    ).squeeze(0)
    return resized if native else resized.round_().clamp_(0, 255).to(torch.uint8)  # as bicubic overshoots


def _central_square(pixels: Tensor, share: float) -> Tensor:
    """Returns the centred square [3, S, S] whose side is a share of the shorter one.

    Rounded as `_decode_and_center_crop` in the preprocessing of TensorFlow's EfficientNet does it.
    """
    height, width = pixels.shape[-2:]
    side = max(1, int(share * min(height, width)))
    return pixels.narrow(1, (height - side + 1) // 2, side).narrow(2, (width - side + 1) // 2, side)


def _center_crop(pixels: Tensor, size: int) -> Tensor:
    """Returns the middle [3, size, size], with zeros around it where the image is smaller."""
    for dim in (1, 2):
        excess = pixels.shape[dim] - size
        if excess < 0:
            before = -excess // 2
            padding = [before, -excess - before] if dim == 2 else [0, 0, before, -excess - before]
            pixels = functional.pad(pixels, padding)
        else:
            pixels = pixels.narrow(dim, round(excess / 2), size)
    return pixels
