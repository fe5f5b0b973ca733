"""From a file's bytes to the backbone's pixels, in uint8.

torchvision.io decodes what it can; Pillow the rest: PNG, CMYK, BMP, TIFF and so on.
What has no defined way to 8-bit RGB, or is not whole, is rejected with its reason, never guessed.
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
"""Formats that are read. Pillow knows more; one of them, EPS, would start an interpreter on what is in the file."""
_NATIVE = {("JPEG", "RGB"), ("JPEG", "L"), ("MPO", "RGB"), ("WEBP", "RGB"), ("WEBP", "RGBA")}
"""(format, mode) pairs, in Pillow's words, that torchvision.io decodes to what Pillow gives.

Not PNG: on damaged files its decoder ends the whole process (seen with torchvision 0.29).
"""
_FAST_BYTES = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() == "aarch64"
_RESIZES_BYTES = ("bilinear", "bicubic") if _FAST_BYTES else ("bicubic",)
"""What torch resizes in uint8 on the CPU, and not in float32; torchvision decides in the same way."""
_DRAFTED_FROM = 8
"""How much larger than needed a JPEG has to be to be decoded as a draft; below that, it takes as long as the whole."""
_DRAFT_AT_LEAST = 2
"""How much larger than needed a draft is at least: what is resized from it differs by less than a level on average."""
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_END_OF_JPEG = b"\xff\xd9"
_ORIENTATION = 0x0112
"""EXIF's tag of it."""
_NATIVE_EXIF = {"JPEG", "MPO"}
"""Formats in which torchvision.io applies the EXIF orientation."""


class ImageDecoder(DenseDecoder):
    """Images as rows of a uint8 batch.

    Args:
        preprocessing: From the image to its row.
        max_pixels: Of an image, as it is and resized; larger ones are rejected.
    """

    entry = "images"

    def __init__(self, preprocessing: Preprocessing, max_pixels: int = MAX_PIXELS) -> None:
        self.preprocessing = preprocessing
        self.max_pixels = max_pixels

    def empty(self, batch_size: int) -> Tensor:
        """A batch to be filled: [B, 3, H, W] uint8, channels last in memory."""
        size = self.preprocessing.crop
        return torch.empty(batch_size, size, size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)

    def decode_into(self, row: Tensor, data: bytes) -> None:
        """Decodes an input's bytes into its row [3, H, W].

        Raises:
            RejectedInputError: If that can't be done; the row is undefined then.
        """
        row.copy_(preprocess(self.decode(data), self.preprocessing, max_pixels=self.max_pixels))

    def decode(self, data: bytes) -> Tensor:
        """Decodes an input's bytes to [3, H, W], yet to be resized.

        Raises:
            RejectedInputError: If that can't be done.
        """
        return decode(data, exif=self.preprocessing.exif, max_pixels=self.max_pixels, steps=self.preprocessing)


def decode(
    data: bytes, *, exif: bool = True, max_pixels: int = MAX_PIXELS, steps: Preprocessing | None = None
) -> Tensor:
    """Decodes an image; of an animation or a multi-page file, the first picture.

    Args:
        data: The file's bytes.
        exif: Whether to apply the EXIF orientation.
        max_pixels: That it may have.
        steps: What follows. A JPEG that it shrinks a lot comes in the size to which it would be resized.

    Returns:
        [3, H, W] uint8, RGB.

    Raises:
        RejectedInputError: If it is too large, or not a whole image in a form with a defined way to 8-bit RGB.
        MemoryError: If there is not enough memory for it.
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
    """Silences Pillow's warnings, and lifts its limit on pixels, while this lasts; both are the whole process's.

    The warnings are about files that it goes on to decode or refuse by an error.
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
    return image.format == "JPEG" and isinstance(needed, int) and min(image.size) >= _DRAFTED_FROM * needed


def _decode_draft(image: Image.Image, steps: Preprocessing, *, exif: bool) -> Tensor | None:
    """Decodes a JPEG far larger than needed to a fraction of its size, and resizes that; None for any other.

    Its cosine transform is inverted for fewer pixels, which are means of those that there would be.
    """
    needed, (width, height) = steps.resize, image.size
    if not (isinstance(needed, int) and _is_drafted(image, steps)):
        return None
    draft = image.draft(None, (_DRAFT_AT_LEAST * needed, _DRAFT_AT_LEAST * needed))
    if draft is None:
        return None
    _, box = draft  # what of the draft is image: its last row and column may reach beyond
    size = width * needed // min(width, height), height * needed // min(width, height)
    resized = image.convert("RGB").resize(size, _RESAMPLING[steps.interpolation], box)
    if exif:
        resized = ImageOps.exif_transpose(resized)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def _decode_native(data: bytes, image: Image.Image, *, exif: bool) -> Tensor | None:
    """Decodes by torchvision.io; None if that is not for this image, or fails."""
    if (image.format, image.mode) not in _NATIVE:
        return None
    if exif and "exif" in image.info and image.format not in _NATIVE_EXIF:
        return None
    if exif and b"Orientation" in image.info.get("xmp", b""):
        return None  # of the two only Pillow looks there
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        pixels = decode_image(encoded, mode=ImageReadMode.RGB, apply_exif_orientation=exif)
    except RuntimeError:
        return None  # Pillow has the last word, and the better messages
    return pixels if pixels.dtype == torch.uint8 and pixels.ndim == 3 else None


def is_plain_jpeg(data: bytes, steps: Preprocessing, max_pixels: int = MAX_PIXELS) -> bool:
    """Whether any JPEG decoder makes of it what `decode` does: whole, gray or YCbCr, upright, of usual size.

    Args:
        data: The file's bytes, of which the headers and the last are looked at.
        steps: What follows.
        max_pixels: That it may have, as it is and resized.
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
        except Exception:  # noqa: BLE001  (whatever is wrong with it is for `decode` to say)
            return False
    usual = image.width * image.height <= max_pixels and not _is_drafted(image, steps)
    usual &= image.info.get("adobe_transform") != 0  # which is coded as RGB
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
    """Resizes and crops as the torchvision presets do, on uint8.

    Args:
        pixels: [3, H, W] uint8.
        steps: What to do.
        max_pixels: That it may have once resized.

    Returns:
        [3, crop, crop] uint8.

    Raises:
        RejectedInputError: If the image is so elongated that it would have more.
    """
    height, width = pixels.shape[-2:]
    new_height, new_width = _resized(height, width, steps, max_pixels)
    if (new_height, new_width) != (height, width):
        pixels = resize(pixels, new_height, new_width, steps.interpolation)
    return _center_crop(pixels, steps.crop)


def _resized(height: int, width: int, steps: Preprocessing, max_pixels: int) -> tuple[int, int]:
    """The height and width to which an image is resized.

    Raises:
        RejectedInputError: If it is so elongated that it would have too many pixels.
    """
    if not isinstance(steps.resize, int):
        return steps.resize
    new_height, new_width = (side * steps.resize // min(height, width) for side in (height, width))
    if new_width * new_height > max_pixels:
        raise RejectedInputError(
            f"too elongated: {width}x{height}, resized to {_too_many(new_width, new_height, max_pixels)}"
        )
    return new_height, new_width


def resize(pixels: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    """Resizes as torchvision.transforms.v2 does, whose import takes longer than that of torch.

    Args:
        pixels: [3, H, W] uint8; of a CUDA device they are resized in float32, as there is no other way.
        height: To which.
        width: To which.
        interpolation: bilinear or bicubic, antialiased.
    """
    one = pixels.permute(1, 2, 0).unsqueeze(0).permute(0, 3, 1, 2)  # so that the layout in memory can be told
    native = pixels.device.type == "cpu" and interpolation in _RESIZES_BYTES
    resized = functional.interpolate(
        one if native else one.float(), (height, width), mode=interpolation, antialias=True
    ).squeeze(0)
    return resized if native else resized.round_().clamp_(0, 255).to(torch.uint8)  # as bicubic overshoots


def _center_crop(pixels: Tensor, size: int) -> Tensor:
    """The middle [3, size, size], with zeros around it where the image is smaller."""
    for dim in (1, 2):
        excess = pixels.shape[dim] - size
        if excess < 0:
            before = -excess // 2
            padding = [before, -excess - before] if dim == 2 else [0, 0, before, -excess - before]
            pixels = functional.pad(pixels, padding)
        else:
            pixels = pixels.narrow(dim, round(excess / 2), size)
    return pixels
