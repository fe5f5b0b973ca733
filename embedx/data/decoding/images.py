"""Decodes an image's bytes into the pixels that the backbone takes, in uint8.

torchvision.io decodes most images, Pillow the rest: PNG, CMYK, BMP, TIFF and so on, tifffile what Pillow can't of TIFF.
An image without a defined conversion to 8-bit RGB, or a truncated one, is rejected with its reason, never guessed.
"""

from __future__ import annotations

import platform
from typing import NamedTuple

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional
from torchvision.io import ImageReadMode, decode_image

from embedx.data.decoding import jxl, memory, tiff
from embedx.data.decoding.batch_rows import DenseDecoder
from embedx.data.decoding.beside import JPEG_MAGIC, picture_alone
from embedx.data.decoding.colors import to_rgb
from embedx.data.decoding.jpeg import MOST_SCANS, count_scans
from embedx.data.decoding.opening import only_own_limits, open_image, reason_of
from embedx.data.decoding.orientation import orientation, turn_pixels
from embedx.data.decoding.pictures import decode_tiff, decode_with_pillow, render
from embedx.data.reading.files import RejectedInputError
from embedx.recipe import AS_STATED, PixelOptions, Preprocessing
from embedx.values import MAX_PIXELS

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
        self.fill(row, self.decode(data))

    def fill(self, row: Tensor, pixels: Tensor) -> None:
        """Resizes and crops decoded pixels [3, H, W] uint8 into a row; raises a RejectedInputError if they can't be."""
        row.copy_(preprocess(pixels, self.preprocessing, max_pixels=self.max_pixels))

    def decode(self, data: bytes) -> Tensor:
        """Decodes an input's bytes to [3, H, W] uint8, which is still to be resized, as `decode` does."""
        steps = self.preprocessing
        return decode(data, exif=steps.exif, max_pixels=self.max_pixels, steps=steps, options=steps.pixels)


def decode(
    data: bytes,
    *,
    exif: bool = True,
    max_pixels: int = MAX_PIXELS,
    steps: Preprocessing | None = None,
    options: PixelOptions = AS_STATED,
) -> Tensor:
    """Decodes an image, or the first picture of an animation or a multi-page file.

    Damage to what stands beside the picture in the file, such as EXIF, is passed over.

    Args:
        data: The file's bytes.
        exif: Whether to apply the EXIF orientation.
        max_pixels: The largest number of pixels it may have.
        steps: The preprocessing to follow, if known: a JPEG that it shrinks a lot is decoded at the resized size.
        options: The reading of deep pixels, further channels, alpha and colour profiles.

    Returns:
        [3, H, W] uint8, RGB.

    Raises:
        RejectedInputError: If it is too large, truncated, or has no defined conversion to 8-bit RGB.
        MemoryError: If memory is too short to decode it.
    """
    if not data:
        raise RejectedInputError("the file is empty")
    how = _How(exif, max_pixels, steps, options)
    with only_own_limits():
        try:
            return _decode(data, how)
        except (RejectedInputError, MemoryError):
            raise
        except Exception as error:  # Pillow's plugins raise almost anything on damaged files
            alone = picture_alone(data)
            if alone is not None and alone != data and (pixels := _decode_rest(alone, how)) is not None:
                return pixels
            raise RejectedInputError(reason_of(data, error)) from error


class _How(NamedTuple):
    exif: bool
    max_pixels: int
    steps: Preprocessing | None
    options: PixelOptions


def _decode_rest(alone: bytes, how: _How) -> Tensor | None:
    try:
        return _decode(alone, how)
    except (RejectedInputError, MemoryError):
        raise
    except Exception:  # noqa: BLE001  (the error of the whole file says more)
        return None


def _decode(data: bytes, how: _How) -> Tensor:
    if data.startswith(jxl.MAGIC):  # which opening decodes
        _check(memory.jxl_frame(data), how.max_pixels)
    try:
        image = open_image(data)
    except UnidentifiedImageError:
        if data.startswith(tiff.MAGIC):
            tags, size, big_endian = tiff.header(data)
            _check(memory.tiff_frame(tags, size, big_endian=big_endian, is_opened=False), how.max_pixels)
            return decode_tiff(data, exif=how.exif, options=how.options)
        raise
    if image.format in ("JPEG", "MPO") and (scans := count_scans(data)) > MOST_SCANS:
        raise RejectedInputError(f"a JPEG of {scans} scans, more than {MOST_SCANS}; save it anew, by Pillow or cjpeg")
    is_drafted = how.steps is not None and _is_drafted(image, how.steps)
    _check(memory.frame_of(image, data, is_drafted=is_drafted), how.max_pixels)
    if how.steps is not None and (pixels := _decode_draft(image, how.steps, how)) is not None:
        return pixels
    if (pixels := _decode_native(data, image, how)) is not None:
        return pixels
    return decode_with_pillow(data, image, exif=how.exif, options=how.options)


def _check(frame: memory.Frame, max_pixels: int) -> None:
    width, height = frame.width, frame.height
    if width < 1 or height < 1:
        raise RejectedInputError(f"the image has no pixels: {width}x{height}")
    if width * height > max_pixels:
        raise RejectedInputError(f"too large: {_too_many(width, height, max_pixels)}")
    memory.check(frame, max_pixels)


def _too_many(width: int, height: int, allowed: int) -> str:
    pixels = width * height
    return f"{width}x{height} = {pixels} pixels, more than --max-pixels {allowed}; raise it to let such images in"


def _is_drafted(image: Image.Image, steps: Preprocessing) -> bool:
    needed = steps.resize
    is_far_larger = isinstance(needed, int) and min(image.size) >= _DRAFTED_FROM * needed
    return image.format == "JPEG" and is_far_larger and steps.crop_first is None


def _decode_draft(image: Image.Image, steps: Preprocessing, how: _How) -> Tensor | None:
    """Decodes a JPEG far larger than needed at a fraction of its size and resizes that; returns None for any other.

    The inverse cosine transform then yields fewer pixels, which are means of the full image's.
    """
    needed, (width, height) = steps.resize, image.size
    if not (isinstance(needed, int) and _is_drafted(image, steps)):
        return None
    turn = orientation(image) if how.exif else 1
    draft = image.draft(None, (_DRAFT_AT_LEAST * needed, _DRAFT_AT_LEAST * needed))
    if draft is None:
        return None
    _, box = draft  # the part of the draft that is image: its last row and column may reach beyond
    size = width * needed // min(width, height), height * needed // min(width, height)
    resized = to_rgb(image, how.options).resize(size, _RESAMPLING[steps.interpolation], box)
    return render(resized, turn, AS_STATED)


def _decode_native(data: bytes, image: Image.Image, how: _How) -> Tensor | None:
    """Decodes by torchvision.io; returns None for an image that it is not used for, or fails on."""
    if (image.format, image.mode) not in _NATIVE or _concerns(how.options, image):
        return None
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        pixels = decode_image(encoded, mode=ImageReadMode.RGB)
    except RuntimeError:
        return None  # Pillow has the last word, and the better messages
    if pixels.dtype != torch.uint8 or pixels.ndim != 3:
        return None
    return turn_pixels(pixels, orientation(image)) if how.exif else pixels


def _concerns(options: PixelOptions, image: Image.Image) -> bool:
    """Tells whether the options change the pixels of an image that is native to torchvision.io."""
    return (
        options.channels is not None
        or (options.color is not None and bool(image.info.get("icc_profile")))
        or (options.background is not None and image.mode == "RGBA")
    )


def is_plain_jpeg(data: bytes, steps: Preprocessing, max_pixels: int = MAX_PIXELS) -> bool:
    """Tells whether every JPEG decoder gives the pixels of `decode`: a whole, upright gray or YCbCr JPEG of usual size.

    Only the headers and the last bytes are examined.
    """
    if not (data.startswith(JPEG_MAGIC) and data.rstrip(b"\0").endswith(_END_OF_JPEG)):
        return False
    with only_own_limits():
        try:
            image = open_image(data)
            upright = not steps.exif or orientation(image) == 1
            _resized(image.height, image.width, steps, max_pixels)
        except Exception:  # noqa: BLE001  (`decode` will say what is wrong)
            return False
    usual = image.width * image.height <= max_pixels and not _is_drafted(image, steps)
    usual &= image.info.get("adobe_transform") != 0  # 0 stands for RGB
    usual &= not _concerns(steps.pixels, image) and count_scans(data) <= MOST_SCANS
    return upright and usual and (image.format, image.mode) in (("JPEG", "RGB"), ("JPEG", "L"))


def preprocess(pixels: Tensor, steps: Preprocessing, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Resizes and crops one image [3, H, W] uint8, or several [N, 3, H, W], to crop x crop as torchvision's presets do.

    Raises:
        RejectedInputError: If they are so elongated that each would have more than `max_pixels` once resized.
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
    """Resizes one image [3, H, W] uint8, or several [N, 3, H, W], as torchvision.transforms.v2 does.

    They are antialiased, by bilinear or bicubic interpolation; on a CUDA device in float32, the only way there. The
    import of torchvision's own takes longer than torch's.
    """
    batch = pixels
    if pixels.dim() == 3:
        batch = pixels.permute(1, 2, 0).unsqueeze(0).permute(0, 3, 1, 2)  # keeps the layout in memory recognisable
    native = pixels.device.type == "cpu" and interpolation in _RESIZES_BYTES
    resized = functional.interpolate(
        batch if native else batch.float(), (height, width), mode=interpolation, antialias=True
    ).view(*pixels.shape[:-2], height, width)
    return resized if native else resized.round_().clamp_(0, 255).to(torch.uint8)  # as bicubic overshoots


def _central_square(pixels: Tensor, share: float) -> Tensor:
    """Returns the centred squares [..., 3, S, S] whose side is a share of the shorter one.

    Rounded as `_decode_and_center_crop` in the preprocessing of TensorFlow's EfficientNet does it.
    """
    height, width = pixels.shape[-2:]
    side = max(1, int(share * min(height, width)))
    return pixels.narrow(-2, (height - side + 1) // 2, side).narrow(-1, (width - side + 1) // 2, side)


def _center_crop(pixels: Tensor, size: int) -> Tensor:
    """Returns the middle [..., 3, size, size], with zeros around it where the images are smaller."""
    for dim in (-2, -1):
        excess = pixels.shape[dim] - size
        if excess < 0:
            before = -excess // 2
            padding = [before, -excess - before] if dim == -1 else [0, 0, before, -excess - before]
            pixels = functional.pad(pixels, padding)
        else:
            pixels = pixels.narrow(dim, round(excess / 2), size)
    return pixels
