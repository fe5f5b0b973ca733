"""Images that are cropped before they are resized, as TensorFlow does; Pillow's is the reference."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from embedx.data.decoding.images import ImageDecoder
from embedx.recipe import Preprocessing
from embedx.values import Interpolation

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def by_pillow(image: Image.Image, size: int, share: float, interpolation: str) -> np.ndarray[tuple[int, ...], np.dtype]:
    """TensorFlow's `preprocess_for_eval` of EfficientNet, whose share is size / (size + 32)."""
    width, height = image.size
    side = int(share * min(height, width))
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), RESAMPLING[interpolation])).transpose(2, 0, 1)


@pytest.mark.parametrize("shape", [(100, 61), (61, 100), (97, 97), (33, 200), (1000, 700)])
@pytest.mark.parametrize(("size", "share"), [(32, 32 / 64), (32, 0.875), (64, 1.0), (224, 224 / 256)])
@pytest.mark.parametrize("interpolation", RESAMPLING)
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_the_centred_square_is_resized(
    shape: tuple[int, int], size: int, share: float, interpolation: Interpolation, form: str
) -> None:
    """Also of JPEGs so large that others are decoded as drafts."""
    noise = torch.rand(3, 9, 9, generator=torch.Generator().manual_seed(0)) * 255
    pixels = torch.nn.functional.interpolate(noise[None], shape, mode="bicubic").clamp(0, 255).byte()[0]
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file := io.BytesIO(), form, quality=95)
    steps = Preprocessing(size, size, interpolation, (0.0,) * 3, (1.0,) * 3, crop_first=share)
    decoder = ImageDecoder(steps)
    row = decoder.empty(1)[0]
    decoder.decode_into(row, file.getvalue())
    expected = by_pillow(Image.open(file).convert("RGB"), size, share, interpolation)
    assert np.abs(row.numpy().astype(int) - expected.astype(int)).max() <= 2


def test_the_square_is_that_of_the_upright_image() -> None:
    image = Image.fromarray(np.arange(60 * 40 * 3, dtype=np.uint8).reshape(60, 40, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(file := io.BytesIO(), "JPEG", exif=exif)
    decoder = ImageDecoder(Preprocessing(16, 16, "bilinear", (0.0,) * 3, (1.0,) * 3, crop_first=0.5))
    decoder.decode_into(row := decoder.empty(1)[0], file.getvalue())
    expected = by_pillow(ImageOps.exif_transpose(Image.open(file)), 16, 0.5, "bilinear")
    assert np.abs(row.numpy().astype(int) - expected.astype(int)).max() <= 2
