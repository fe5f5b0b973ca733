"""The formats that need plugins, and the reasons by name for what is not read."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from embedx.data.decoding.images import decode
from embedx.data.reading.files import RejectedInputError
from embedx.data.sources.kinds import SUFFIXES
from embedx.recipe import parse_pixels

pillow_heif = pytest.importorskip("pillow_heif")
pytest.importorskip("pillow_jxl")

GRADIENT = np.dstack(np.broadcast_arrays(*np.ogrid[0:200:24j, 0:240:36j], 90)).astype(np.uint8)
SIX = Image.Exif()
SIX[0x0112] = 6


def encode(format: str, array: Any = GRADIENT, **options: Any) -> bytes:
    pillow_heif.register_heif_opener()
    file = io.BytesIO()
    Image.fromarray(array).save(file, format, **options)
    return file.getvalue()


def by_plugin(data: bytes) -> torch.Tensor:
    pillow_heif.register_heif_opener()
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


IMAGES = {
    "heic": encode("HEIF", quality=-1),
    "heic, exif alone, which does not turn it": encode("HEIF", quality=-1, exif=SIX),
    "heic, gray": encode("HEIF", GRADIENT[..., 0], quality=-1),
    "heic, alpha": encode("HEIF", np.dstack([GRADIENT, GRADIENT[..., :1]]), quality=-1),
    "jxl": encode("JXL", lossless=True),
    "jxl, turned": encode("JXL", lossless=True, exif=SIX.tobytes()),
    "jxl, gray": encode("JXL", GRADIENT[..., 0], lossless=True),
    "jxl, alpha": encode("JXL", np.dstack([GRADIENT, GRADIENT[..., :1]]), lossless=True),
    "jxl, in a container": encode("JXL", lossless=True, use_container=True),
    "avif": encode("AVIF"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_that_need_a_plugin_are_what_it_makes_of_them(name: str) -> None:
    assert torch.equal(decode(IMAGES[name]), by_plugin(IMAGES[name]))
    assert decode(IMAGES[name]).shape == ((3, 36, 24) if name == "jxl, turned" else (3, 24, 36))


def test_16_bits_of_jpeg_xl_are_those_of_png() -> None:
    values = np.linspace(0, 65535, 24 * 31).astype(np.uint16).reshape(24, 31)
    assert np.array_equal(decode(encode("JXL", values, lossless=True))[1].numpy(), values >> 8)


@pytest.mark.parametrize("container", [False, True])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_cameras_bits_in_jpeg_xl_are_not_taken_for_a_dark_picture(channels: int, container: bool) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    full = np.random.default_rng(1).integers(0, 2**16, (24, 31, channels), dtype=np.uint16)
    for shift, setting in ((0, ""), (4, "bits=12")):
        values = full.copy()
        values[..., : channels - (channels != 3)] >>= shift
        data = imagecodecs.jpegxl_encode(values, lossless=True, usecontainer=container)
        high = values[..., : 1 if channels == 2 else 3].astype(int) >> (8 - shift)
        pixels = decode(data, options=parse_pixels(setting)).permute(1, 2, 0).numpy()
        assert abs(pixels - high).max() <= 1  # the decoder of 8 bits rounds
        if shift:
            with pytest.raises(RejectedInputError, match="give --pixels bits=12"):
                decode(data)
    eight = imagecodecs.jpegxl_encode((full >> 8).astype(np.uint8), lossless=True, usecontainer=container)
    assert np.array_equal(decode(eight)[0].numpy(), full[..., 0] >> 8)


@pytest.mark.parametrize("name", ["heic", "jxl"])
def test_the_size_is_checked_and_damage_is_a_reason(name: str) -> None:
    with pytest.raises(RejectedInputError, match="too large: 36x24 = 864 pixels"):
        decode(IMAGES[name], max_pixels=863)
    with pytest.raises(RejectedInputError):
        decode(IMAGES[name][: len(IMAGES[name]) // 2])


def test_without_the_plugins_the_reason_names_the_packages(tmp_path: Path) -> None:
    for name in ("heic", "jxl"):
        (tmp_path / name).write_bytes(IMAGES[name])
    code = (
        "import sys\n"
        "sys.modules['pillow_heif'] = sys.modules['pillow_jxl'] = None\n"  # as if they were not there
        "from embedx.data.decoding.opening import open_image\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        open_image(open(name, 'rb').read())\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, error)\n"
    )
    command = [sys.executable, "-c", code, *map(str, sorted(tmp_path.iterdir()))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines() == [
        "RejectedInputError an image in HEIC: it needs the package pillow-heif; install it by pip install "
        "'embedx[formats]'",
        "RejectedInputError an image in JPEG XL: it needs the package pillow-jxl-plugin; install it by pip install "
        "'embedx[formats]'",
    ]


def test_their_suffixes_are_inputs_of_folders() -> None:
    assert {".heic", ".heif", ".hif", ".avif", ".jxl"} <= SUFFIXES["images"]


PLAIN = encode("JPEG")
FRAME = PLAIN.index(b"\xff\xc0")


def frame(marker: int = 0xC0, bits: int = 8) -> bytes:
    return PLAIN[:FRAME] + bytes([0xFF, marker]) + PLAIN[FRAME + 2 : FRAME + 4] + bytes([bits]) + PLAIN[FRAME + 5 :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (frame(0xC1, bits=12), "a JPEG of 12 bits per channel, and only those of 8 are read; convert it to PNG or "),
        (frame(0xC3), "a lossless JPEG, which is not read; convert it to PNG or TIFF"),
        (frame(0xC3, bits=16), "a lossless JPEG, which is not read; "),
        (frame(0xF7), "a JPEG-LS, which is not read; "),
        (frame(0xC5), "a hierarchical JPEG, which is not read; "),
        (b"GIF89a\1\0\1\0\0\0\0;", "a GIF without a picture in it"),
        (b"GIF89a\1\0\1\0\0\0\0\x21\xfe\3abc\0;", "a GIF without a picture in it"),
    ],
)
def test_kinds_that_are_not_read_are_named(data: bytes, reason: str) -> None:
    with pytest.raises(RejectedInputError) as caught:
        decode(data)
    assert str(caught.value).startswith(reason)
