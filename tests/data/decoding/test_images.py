from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, features
from torchvision import models
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from embedx.data.decoding.images import ImageDecoder, decode, preprocess
from embedx.data.decoding.opening import only_own_limits, open_image
from embedx.data.reading.files import FileReader, RejectedInputError
from embedx.recipe import Preprocessing

ORIENTATION = 0x0112
PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "camera.png", "rocket.jpg", "retina.jpg")
STEPS = Preprocessing(resize=256, crop=224, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
avif = pytest.mark.skipif(not features.check("avif"), reason="Pillow is built without AVIF")


@pytest.fixture(scope="session")
def photo(photos: Path) -> Image.Image:
    """A photograph, small and not square."""
    return Image.open(photos / "chelsea.png").convert("RGB").resize((150, 100))


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def oriented(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return exif


def by_pillow(data: bytes, *, exif: bool = True) -> torch.Tensor:
    image = Image.open(io.BytesIO(data))
    turned = ImageOps.exif_transpose(image) if exif else image
    if isinstance(turned.info.get("transparency"), bytes):
        turned = turned.convert("RGBA")  # as Pillow's warning asks
    return torch.from_numpy(np.array(turned.convert("RGB"))).permute(2, 0, 1)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean of the absolute difference, in units of uint8."""
    assert one.dtype == other.dtype == torch.uint8
    assert one.shape == other.shape
    return (one.float() - other.float()).abs().mean().item()


def png(width: int, height: int, depth: int, color: int, rows: bytes, *, chunks: bytes = b"") -> bytes:
    """A PNG in one of the forms that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = _chunk(b"IHDR", header) + chunks + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def outcome(data: bytes) -> Any:
    """The shape of the image, or the reason of the rejection; anything else is raised."""
    try:
        pixels = decode(data)
    except RejectedInputError as error:
        return str(error)
    assert pixels.dtype == torch.uint8
    assert pixels.ndim == 3 and pixels.shape[0] == 3
    return tuple(pixels.shape)


LOSSY: dict[str, Callable[[Image.Image], bytes]] = {
    "jpeg": lambda image: encode(image, "JPEG", quality=90),
    "jpeg progressive": lambda image: encode(image, "JPEG", progressive=True),
    "jpeg 4:4:4": lambda image: encode(image, "JPEG", subsampling=0),
    "jpeg stored as rgb": lambda image: encode(image, "JPEG", keep_rgb=True),
    "jpeg grey": lambda image: encode(image.convert("L"), "JPEG"),
    "jpeg cmyk": lambda image: encode(image.convert("CMYK"), "JPEG"),
    "jpeg of two pictures": lambda image: encode(image, "MPO", save_all=True, append_images=[image.rotate(180)]),
    "webp": lambda image: encode(image, "WEBP", quality=80),
}
LOSSLESS: dict[str, Callable[[Image.Image], bytes]] = {
    "png": lambda image: encode(image, "PNG"),
    "png grey": lambda image: encode(image.convert("L"), "PNG"),
    "png alpha": lambda image: encode(with_alpha(image), "PNG"),
    "png grey alpha": lambda image: encode(with_alpha(image).convert("LA"), "PNG"),
    "png palette": lambda image: encode(image.quantize(32), "PNG"),
    "png palette, one transparent": lambda image: encode(image.quantize(32), "PNG", transparency=3),
    "png palette with alpha": lambda image: encode(image.quantize(32), "PNG", transparency=bytes(range(32))),
    "png black and white": lambda image: encode(image.convert("1"), "PNG"),
    "png animated": lambda image: encode(image, "PNG", save_all=True, append_images=[image.rotate(180)]),
    "webp lossless": lambda image: encode(image, "WEBP", lossless=True),
    "webp alpha": lambda image: encode(with_alpha(image), "WEBP", lossless=True, exact=True),
    "webp animated": lambda image: encode(
        image, "WEBP", lossless=True, save_all=True, append_images=[image.rotate(180)]
    ),
    "gif": lambda image: encode(image, "GIF"),
    "gif animated": lambda image: encode(image, "GIF", save_all=True, append_images=[image.rotate(180)]),
    "bmp": lambda image: encode(image, "BMP"),
    "tiff": lambda image: encode(image, "TIFF"),
    "tiff lzw": lambda image: encode(image, "TIFF", compression="tiff_lzw"),
    "tiff fax": lambda image: encode(image.convert("1"), "TIFF", compression="group4"),
    "tiff of two pages": lambda image: encode(image, "TIFF", save_all=True, append_images=[image.rotate(180)]),
    "ppm": lambda image: encode(image, "PPM"),
    "pgm": lambda image: encode(image.convert("L"), "PPM"),
}


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(image.convert("L").point(lambda value: value // 2))
    return image


@pytest.mark.parametrize("form", LOSSY)
def test_lossy_images_are_what_pillow_makes_of_them(photo: Image.Image, form: str) -> None:
    data = LOSSY[form](photo)
    assert difference(decode(data), by_pillow(data)) < 0.1
    assert difference(decode(data), torch.from_numpy(np.array(photo)).permute(2, 0, 1)) < (60 if "grey" in form else 12)


@pytest.mark.parametrize("form", LOSSLESS)
def test_lossless_images_are_pixel_by_pixel_what_pillow_makes_of_them(photo: Image.Image, form: str) -> None:
    data = LOSSLESS[form](photo)
    assert torch.equal(decode(data), by_pillow(data))


@avif
def test_avif_is_what_pillow_makes_of_it(photo: Image.Image) -> None:
    data = encode(photo, "AVIF")
    assert torch.equal(decode(data), by_pillow(data))


@pytest.mark.parametrize("name", PHOTOS)
def test_photographs_are_what_pillow_makes_of_them(photos: Path, name: str) -> None:
    data = (photos / name).read_bytes()
    assert difference(decode(data), by_pillow(data)) < 0.1


@pytest.mark.parametrize("frames", ["GIF", "WEBP", "TIFF", "MPO", "PNG"])
def test_of_several_pictures_the_first_is_taken(frames: str) -> None:
    black, white = Image.new("RGB", (16, 16)), Image.new("RGB", (16, 16), "white")
    assert decode(encode(black, frames, save_all=True, append_images=[white])).max() < 8
    assert decode(encode(white, frames, save_all=True, append_images=[black])).min() > 247


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", pytest.param("AVIF", marks=avif)])
def test_the_exif_orientation_is_applied(photo: Image.Image, format: str, orientation: int) -> None:
    data = encode(photo, format, exif=oriented(orientation), **({"lossless": True} if format == "WEBP" else {}))
    pixels = decode(data)
    assert pixels.shape == ((3, 100, 150) if orientation < 5 else (3, 150, 100))
    assert difference(pixels, by_pillow(data)) < 0.1


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", pytest.param("AVIF", marks=avif)])
def test_the_exif_orientation_is_left_alone_where_that_is_asked(
    photo: Image.Image, format: str, orientation: int
) -> None:
    plain, tagged = encode(photo, format), encode(photo, format, exif=oriented(orientation))
    assert torch.equal(decode(tagged, exif=False), decode(plain))
    assert torch.equal(decode(tagged, exif=False), by_pillow(tagged, exif=False))


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_an_orientation_that_does_not_exist_means_none(photo: Image.Image, orientation: int) -> None:
    for format in ("JPEG", "PNG"):
        tagged = encode(photo, format, exif=oriented(orientation))
        assert torch.equal(decode(tagged), decode(encode(photo, format)))


def test_an_orientation_in_xmp_alone_is_applied_whatever_the_format(photo: Image.Image) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    for format in ("TIFF", "JPEG", "WEBP"):
        data = encode(photo, format, **({"tiffinfo": {700: xmp}} if format == "TIFF" else {"xmp": xmp}))
        assert decode(data).shape == by_pillow(data).shape == (3, 150, 100)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_of_16_bit_grey_the_high_byte_is_kept(format: str) -> None:
    values = np.linspace(0, 65535, 24 * 31).astype(np.uint16).reshape(24, 31)
    pixels = decode(encode(Image.fromarray(values), format))
    assert np.array_equal(pixels.numpy(), np.stack([values >> 8] * 3))
    turned = decode(encode(Image.fromarray(values), format, exif=oriented(6)))
    assert np.array_equal(turned[0].numpy(), np.rot90(values >> 8, -1))


@pytest.mark.parametrize(("color", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_of_16_bit_color_the_high_byte_is_kept(color: int, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (6, 8, channels))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    pixels = decode(png(8, 6, 16, color, rows)).permute(1, 2, 0).numpy()
    assert np.array_equal(pixels, (values >> 8)[..., : 3 if channels > 2 else 1].repeat(1 if channels > 2 else 3, 2))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_grey_of_few_bits_spans_the_whole_range(depth: int) -> None:
    rows = b"".join(b"\0" + bytes([value] * depth) for value in (0, 255))
    pixels = decode(png(8, 2, depth, 0, rows))
    assert (pixels[:, 0] == 0).all() and (pixels[:, 1] == 255).all()


@pytest.mark.parametrize(("color", "transparent"), [(2, b"\0\1\0\2\0\3"), (0, b"\0\1")])
def test_a_transparent_color_changes_no_pixel(color: int, transparent: bytes) -> None:
    rows = b"".join(b"\0" + bytes(range(8 * (3 if color == 2 else 1))) for _ in range(4))
    assert torch.equal(
        decode(png(8, 4, 8, color, rows, chunks=_chunk(b"tRNS", transparent))), decode(png(8, 4, 8, color, rows))
    )


@pytest.mark.parametrize(("mode", "type"), [("F", "float32"), ("I", "int32")])
def test_32_bit_images_are_rejected_with_a_reason(photo: Image.Image, mode: str, type: str) -> None:
    reason = f"1 channel of {type} with values from .* to .*, and nothing says which of them are black and white; give "
    with pytest.raises(RejectedInputError, match=reason):
        decode(encode(photo.convert(mode), "TIFF"))


@pytest.mark.parametrize("data", [b"", b"a text, and no image\n", b"<svg></svg>", b"\0" * 1000])
def test_what_is_no_image_is_rejected_with_a_reason(data: bytes) -> None:
    with pytest.raises(RejectedInputError, match=r"the file is empty|not an image of a known format \(it begins with"):
        decode(data)


@pytest.mark.parametrize("form", ["png", "gif", "bmp", "tiff", "ppm", "webp", "jpeg", "jpeg cmyk"])
def test_an_image_of_more_pixels_than_allowed_is_rejected_before_it_is_decoded(photo: Image.Image, form: str) -> None:
    data = (LOSSY | LOSSLESS)[form](photo)
    assert decode(data, max_pixels=15_000).shape == (3, 100, 150)
    allowed = Image.MAX_IMAGE_PIXELS
    message = r"too large: 150x100 = 15000 pixels, more than --max-pixels 14999; raise it to let such images in"
    for part in (data, data if form == "webp" else data[:-20]):  # of one that is not whole either, this is told
        with pytest.raises(RejectedInputError, match=message):
            decode(part, max_pixels=14_999)
    assert Image.MAX_IMAGE_PIXELS == allowed is not None


def test_an_image_without_pixels_is_rejected() -> None:
    """A TIFF of 16-bit numbers, which Pillow leaves to embedx, and that says of itself that it has no rows."""
    content = io.BytesIO()
    pixels = np.full((4, 6), 40_000, np.uint16)
    tifffile.imwrite(content, np.stack([pixels] * 3, -1), photometric="rgb")
    length = struct.pack("<HHII", 257, 4, 1, 4)
    whole = content.getvalue()
    assert whole.count(length) == 1 and decode(whole).shape == (3, 4, 6)
    with pytest.raises(RejectedInputError, match="the image has no pixels: 6x0"):
        decode(whole.replace(length, length[:-4] + bytes(4)))


def test_pillows_own_limit_is_not_in_the_way_and_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RejectedInputError, match=r"30000x30000 = 900000000 pixels, more than --max-pixels 178956970;"):
        decode(png(30_000, 30_000, 8, 2, b""))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode(png(8, 6, 8, 0, 6 * (b"\0" + bytes(8)))).shape == (3, 6, 8)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_pillows_own_limits_are_back_after_threads_that_decoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that left last kept what the other had lifted, and the process had no limit any more."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    filters = list(warnings.filters)
    early, late = contextlib.ExitStack(), contextlib.ExitStack()
    for thread in (early, late):
        thread.enter_context(only_own_limits())
    early.close()
    assert open_image(png(8, 6, 8, 0, 6 * (b"\0" + bytes(8)))).size == (8, 6)
    late.close()
    assert (Image.MAX_IMAGE_PIXELS, warnings.filters) == (10, filters)


@pytest.mark.parametrize(
    "form", ["jpeg", "jpeg progressive", "png", "png palette", "webp", "gif", "bmp", "tiff", "ppm"]
)
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.98])
def test_a_part_of_an_image_is_rejected_always_for_the_same_reason(photo: Image.Image, form: str, share: float) -> None:
    whole = (LOSSY | LOSSLESS)[form](photo)
    part = whole[: int(len(whole) * share)]
    reason = outcome(part)
    assert isinstance(reason, str)
    assert outcome(part) == reason
    assert not re.search(r"0x[0-9a-f]{6,}", reason)
    assert reason.isprintable() and not reason.rstrip().endswith(":")


@pytest.fixture(scope="session")
def seeds(photo: Image.Image) -> list[bytes]:
    """Small images to damage; none that torchvision.io decodes as PNG, see the test below."""
    small = photo.resize((48, 32))
    forms = ("jpeg", "jpeg progressive", "jpeg cmyk", "webp", "webp lossless", "png palette", "gif", "bmp", "tiff lzw")
    return [(LOSSY | LOSSLESS)[form](small) for form in forms]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_images_give_pixels_or_a_reason_and_nothing_else(seeds: list[bytes], data: st.DataObject) -> None:
    damaged = bytearray(data.draw(st.sampled_from(seeds)))
    for position, value in data.draw(st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=5)):
        damaged[position % len(damaged)] = value
    kept = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    assert outcome(kept) == outcome(kept)


@settings(max_examples=50, deadline=None)
@given(start=st.sampled_from([b"", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"GIF89a", b"BM", b"II*\0"]), rest=st.binary())
def test_random_bytes_give_a_reason_and_nothing_else(start: bytes, rest: bytes) -> None:
    reason = outcome(start + rest)
    assert isinstance(reason, tuple) or not re.search(r"0x[0-9a-f]{6,}", reason)


@pytest.mark.soak
def test_damaged_png_files_kill_nobody(photo: Image.Image, tmp_path: Path) -> None:
    whole = encode(photo, "PNG")
    for number in range(20):
        damaged = bytearray(whole)
        damaged[len(whole) * (number + 5) // 30] ^= 0x10
        (tmp_path / f"{number:02}.png").write_bytes(damaged)
    # In a process of its own: a crash is what this is about.
    code = (
        "import json, pathlib, sys\n"
        "from embedx.data.decoding.images import RejectedInputError, decode\n"
        "reasons = []\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    try:\n"
        "        decode(path.read_bytes())\n"
        "    except RejectedInputError as error:\n"
        "        reasons.append(str(error))\n"
        "print(json.dumps(reasons))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0
    assert len(json.loads(done.stdout)) == 20


def test_a_regular_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(range(256)) * 1000)
    assert FileReader().read(os.fsencode(path)) == path.read_bytes()


def test_a_name_that_is_not_utf8_is_read(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\n.jpg"
    with open(path, "wb") as file:
        file.write(b"x")
    assert FileReader().read(path) == b"x"


@pytest.mark.timeout(10)
def test_what_is_no_regular_file_is_rejected_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to("gone.jpg")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    for name, reason in (
        ("fifo.jpg", "not a regular file"),
        ("folder.jpg", "not a regular file"),
        ("link.jpg", "can't be read: No such file or directory"),
        ("missing.jpg", "can't be read: No such file or directory"),
        ("self.jpg", "can't be read: Too many levels of symbolic links"),
        ("a" * 300, "can't be read: File name too long"),
    ):
        with pytest.raises(RejectedInputError, match=reason):
            FileReader().read(os.fsencode(tmp_path / name))
    with pytest.raises(RejectedInputError, match="not a regular file"):
        FileReader().read(b"/dev/zero")


def test_a_file_without_permission_is_rejected() -> None:
    is_root = os.geteuid() == 0  # who may read everything, and becomes another one for a moment
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / "locked.jpg"
        path.write_bytes(b"x")
        path.chmod(0)
        if is_root:
            os.seteuid(65534)
        try:
            with pytest.raises(RejectedInputError, match="can't be read: Permission denied"):
                FileReader().read(os.fsencode(path))
        finally:
            if is_root:
                os.seteuid(0)


@pytest.mark.parametrize("backbone", ["resnet50", "efficientnet_b0", "swin_t", "vit_b_16"])
@pytest.mark.parametrize("name", PHOTOS)
def test_preprocessing_is_that_of_the_torchvision_preset(photos: Path, backbone: str, name: str) -> None:
    preset = models.get_model_weights(backbone).DEFAULT.transforms()
    steps = Preprocessing(
        resize=preset.resize_size[0],
        crop=preset.crop_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )
    data = (photos / name).read_bytes()
    by_preset = preset(Image.open(io.BytesIO(data)).convert("RGB"))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (steps.mean, steps.std))
    expected = (by_preset * std + mean).mul(255).round().to(torch.uint8)
    pixels = preprocess(decode(data), steps)
    # Both round to uint8 after each pass of the resizing; a few pixels differ by one.
    assert difference(pixels, expected) < 0.05
    assert (pixels.int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "crop"), [(64, 56), (33, 33), (31, 48), (40, 101), ((50, 70), 57)])
def test_preprocessing_is_torchvision_s_to_the_bit(
    interpolation: Literal["bilinear", "bicubic"], resize: int | tuple[int, int], crop: int
) -> None:
    steps = Preprocessing(resize, crop, interpolation, mean=(0.5,) * 3, std=(0.5,) * 3)
    for height, width in ((97, 61), (61, 97), (64, 64), (7, 40), (33, 200)):
        pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8).permute(2, 0, 1)
        size = [resize] if isinstance(resize, int) else list(resize)
        resized = transforms.resize(pixels, size, InterpolationMode(interpolation), antialias=True)
        expected = transforms.center_crop(resized, [crop, crop])
        for layout in (pixels, pixels.contiguous()):
            assert torch.equal(preprocess(layout, steps), expected), (height, width)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 2), (500, 40), (40, 500), (224, 224)])
def test_any_shape_becomes_a_square_of_the_crops_size(width: int, height: int) -> None:
    pixels = torch.full((3, height, width), 77, dtype=torch.uint8)
    square = preprocess(pixels, STEPS)
    assert square.shape == (3, 224, 224)
    assert (square == 77).all()


def test_an_image_too_elongated_to_be_resized_is_rejected() -> None:
    for shape, resized in (((3, 10_000, 1), "1x10000, resized to 256x2560000"), ((3, 1, 10_000), "2560000x256")):
        with pytest.raises(RejectedInputError, match=rf"too elongated: .*{resized} = 655360000 pixels, more than"):
            preprocess(torch.zeros(shape, dtype=torch.uint8), STEPS)
    assert preprocess(torch.zeros(3, 1, 100, dtype=torch.uint8), STEPS, max_pixels=256 * 25_600).shape == (3, 224, 224)
    with pytest.raises(RejectedInputError, match="1x100, resized to 256x25600 "):
        preprocess(torch.zeros(3, 100, 1, dtype=torch.uint8), STEPS, max_pixels=256 * 25_600 - 1)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_far_larger_than_needed_is_decoded_at_a_fraction_of_its_size(
    photos: Path, mode: str, orientation: int
) -> None:
    steps = Preprocessing(resize=64, crop=56, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)
    photo = Image.open(photos / "chelsea.png").convert(mode).resize((901, 601))
    file = io.BytesIO()
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    photo.save(file, "JPEG", quality=95, exif=exif)
    data = file.getvalue()
    expected = preprocess(decode(data), steps)
    draft = decode(data, steps=steps)
    assert draft.shape == ((3, 64, 95) if orientation == 1 else (3, 95, 64))
    off = (preprocess(draft, steps).int() - expected.int()).abs()
    assert off.float().mean() < 1 and off.max() <= 8
    row = torch.empty_like(expected)
    ImageDecoder(steps).decode_into(row, data)
    assert torch.equal(row, preprocess(draft, steps))
    for others in (dataclasses.replace(steps, resize=76), dataclasses.replace(steps, resize=(64, 64))):
        assert torch.equal(decode(data, steps=others), decode(data))
