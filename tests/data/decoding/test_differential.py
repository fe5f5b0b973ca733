"""300 generated images, over formats, modes, bits, orientations, metadata and sizes, against a pipeline of the test.

The pipeline is written here, in Pillow and numpy: what was drawn is known, so that the picture that must come out
follows from it, and not from how a file was read. Every image is that picture, or is rejected as the reference says.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin, features
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from embedx.data.decoding.images import ImageDecoder
from embedx.data.decoding.nvjpeg import PartialDecoder
from embedx.data.reading.files import RejectedInputError
from embedx.recipe import Preprocessing, parse_pixels

tifffile = pytest.importorskip("tifffile")
IMAGES = 300
TURNS = {
    1: lambda picture: picture,
    2: lambda picture: picture[:, ::-1],
    3: lambda picture: picture[::-1, ::-1],
    4: lambda picture: picture[::-1],
    5: lambda picture: picture.swapaxes(0, 1),
    6: lambda picture: picture[::-1].swapaxes(0, 1),
    7: lambda picture: picture[::-1, ::-1].swapaxes(0, 1),
    8: lambda picture: picture[:, ::-1].swapaxes(0, 1),
}
"""What each orientation makes of the stored picture, by the EXIF standard."""


class Drawn(NamedTuple):
    """One image, and what must come of it."""

    data: bytes
    about: str
    """How it was made, for the message of a failure."""
    picture: np.ndarray | None
    """The upright picture [H, W, 3]; None where the reference is a reject."""
    reason: str = ""
    pixels: str = ""
    """The setting under which it is read."""
    off: float = 0.0
    """The largest mean difference from the picture; above 0 for lossy formats alone."""


def scene(random: np.random.Generator, channels: int, dtype: Any = np.uint8, *, scale: int = 1) -> np.ndarray:
    """A smooth picture of odd sides; noise would measure the encoders of JPEG and AVIF, and not the decoding."""
    height, width = (int(side) for side in random.integers(17 * scale, 90 * scale, 2))
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = [
        np.sin(random.uniform(0, 5) * x + random.uniform(0, 5) * y + random.uniform(0, 6)) for _ in range(channels)
    ]
    top = np.iinfo(dtype).max
    return np.round((np.dstack(waves) + 1) / 2 * top).astype(dtype)


def oriented(random: np.random.Generator) -> tuple[int, bytes]:
    """An orientation, and EXIF that states it in one of several ways."""
    value, order = int(random.integers(1, 9)), random.choice(["II", "MM"])
    sign, kind = {"II": "<", "MM": ">"}[order], int(random.choice([3, 4]))
    entry = struct.pack(sign + "HHI" + {3: "H2x", 4: "I"}[kind], 0x112, kind, 1, value)
    other = struct.pack(sign + "HHI4s", 0x10F, 2, 4, b"abc\0")
    entries = [other, entry] if random.random() < 0.5 else [entry]
    head = order.encode() + struct.pack(sign + "HI", 42, 8)
    return value, b"Exif\0\0" + head + struct.pack(sign + "H", len(entries)) + b"".join(entries) + bytes(4)


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def shown(array: np.ndarray) -> np.ndarray:
    """Three channels of one, or the first three; what is behind them is alpha."""
    colors = array[..., :1] if array.shape[-1] < 3 else array[..., :3]
    return np.broadcast_to(colors, (*array.shape[:2], 3))


def as_image(array: np.ndarray) -> Image.Image:
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def with_segments(jpeg: bytes, random: np.random.Generator, exif: bytes) -> bytes:
    """A JPEG with its EXIF behind none, one or more other segments, some of them damaged."""
    others = [b"http://ns.adobe.com/xap/1.0/\0<x/>", b"FLIR\0\1", b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0\xff\0"]
    bodies = [others[number] for number in random.choice(4, int(random.integers(0, 3)), replace=False)]
    segments = (b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body for body in [*bodies, exif])
    damaged = b"\xff\xed\0\x14Photoshop 3.0\x008BIM" if random.random() < 0.3 else b""
    return jpeg[:2] + b"".join(segments) + damaged + jpeg[2:]


def jpeg(random: np.random.Generator) -> Drawn:
    mode = str(random.choice(["RGB", "L", "CMYK"]))
    array = scene(random, {"RGB": 3, "L": 1, "CMYK": 4}[mode], scale=int(random.choice([1, 4])))
    size = (array.shape[1], array.shape[0])
    image = Image.frombytes("CMYK", size, array.tobytes()) if mode == "CMYK" else as_image(array)
    quality, progressive = int(random.integers(88, 100)), bool(random.integers(2))
    plain = saved(image, "JPEG", quality=quality, subsampling=0, progressive=progressive)
    value, exif = oriented(random)
    stored = np.array(Image.open(io.BytesIO(plain)).convert("RGB"))  # after its encoder's losses
    about = f"jpeg {mode} {stored.shape} {quality} turned {value}"
    return Drawn(with_segments(plain, random, exif), about, TURNS[value](stored), off=1.0)


def png(random: np.random.Generator) -> Drawn:
    channels, turn = int(random.integers(1, 5)), oriented(random)
    array = scene(random, channels)
    info = PngImagePlugin.PngInfo()
    info.add_text("title", "x" * int(random.choice([3, 3_000_000])), zip=True)
    data = saved(as_image(array), "PNG", exif=turn[1], pnginfo=info)
    damaged = bool(random.integers(2))
    if damaged:  # a text with a wrong checksum
        at = data.index(b"IDAT") - 4
        data = data[:at] + struct.pack(">I", 3) + b"tEXta\0b" + bytes(4) + data[at:]
    return Drawn(data, f"png {channels} turned {turn[0]} {damaged}", TURNS[turn[0]](shown(array)))


def palette(random: np.random.Generator) -> Drawn:
    format = str(random.choice(["PNG", "GIF", "BMP", "TIFF"]))
    image = as_image(scene(random, 3)).quantize(int(random.choice([2, 13, 256])))
    options: dict[str, Any] = {"transparency": 1} if format in ("PNG", "GIF") and random.random() < 0.5 else {}
    return Drawn(saved(image, format, **options), f"palette {format} {options}", np.array(image.convert("RGB")))


def bilevel(random: np.random.Generator) -> Drawn:
    format, options = [("PNG", {}), ("BMP", {}), ("PPM", {}), ("TIFF", {"compression": "group4"}), ("TIFF", {})][
        int(random.integers(5))
    ]
    image = as_image(scene(random, 1)).convert("1")
    return Drawn(saved(image, format, **options), f"1 bit {format} {options}", np.array(image.convert("RGB")))


def lossless(random: np.random.Generator) -> Drawn:
    format = str(random.choice(["WEBP", "BMP", "TGA", "PPM", "TIFF", "JPEG2000"]))
    counts = {
        "WEBP": (3, 4),
        "BMP": (1, 3),
        "TGA": (1, 3, 4),
        "PPM": (1, 3),
        "TIFF": (1, 2, 3, 4),
        "JPEG2000": (1, 3, 4),
    }
    array = scene(random, int(random.choice(counts[format])))
    value, exif = oriented(random) if format == "WEBP" else (1, b"")
    if format == "WEBP" and random.random() < 0.2:
        value, exif = 1, b"Exif\0\0none"
    options: dict[str, Any] = {"lossless": True, "exact": True, "exif": exif} if format == "WEBP" else {}
    if format == "TIFF":
        value = int(random.integers(1, 9))
        options = {"tiffinfo": {0x112: value}, "compression": str(random.choice(["raw", "tiff_lzw", "tiff_deflate"]))}
    if format == "TGA" and random.random() < 0.5:
        options = {"compression": "tga_rle"}
    data = saved(as_image(array), format, **options)
    return Drawn(data, f"{format} {array.shape} {options}", TURNS[value](shown(array)))


def avif(random: np.random.Generator) -> Drawn:
    if not features.check("avif"):
        return lossless(random)
    value = int(random.integers(1, 9))
    tags = Image.Exif()
    tags[0x112] = value
    data = saved(as_image(scene(random, int(random.choice([1, 3, 4])))), "AVIF", exif=tags)
    stored = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    return Drawn(data, f"avif turned {value}", TURNS[value](stored))


def deep_file(values: np.ndarray, random: np.random.Generator, turn: int, **options: Any) -> tuple[bytes, str]:
    """Values of 16 bits as PNG or TIFF."""
    if "photometric" not in options and random.random() < 0.4:
        height, width, channels = values.shape
        header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
        rows = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
        tags = b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHIHxx", 0x112, 3, 1, turn) + bytes(4)
        chunks = ((b"IHDR", header), (b"eXIf", tags), (b"IDAT", rows), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in chunks
        ), "png"
    order = str(random.choice(["<", ">"]))
    how: dict[str, Any] = {"compression": [None, "zlib", "lzw"][int(random.integers(3))], "byteorder": order}
    if random.random() < 0.3:
        how["tile"] = (16, 16)
    file = io.BytesIO()
    count = values.shape[-1]
    default: dict[str, Any] = {"photometric": "rgb" if count > 2 else "minisblack"}
    default |= {"extrasamples": ["unassalpha"]} if count in (2, 4) else {}
    stored = values.astype(order + values.dtype.str[1:])
    tifffile.imwrite(
        file,
        stored[..., 0] if count == 1 else stored,
        extratags=[(0x112, 3, 1, turn, True)],
        **how,
        **{**default, **options},
    )
    return file.getvalue(), f"tiff {how}"


def deep(random: np.random.Generator) -> Drawn:
    """16 bits, of a camera of 10 to 16: read by the setting, or where they are few and it is missing rejected."""
    bits, channels, turn = int(random.choice([10, 12, 14, 16])), int(random.integers(1, 5)), int(random.integers(1, 9))
    values = scene(random, channels, np.uint16) >> (16 - bits)
    white_zero = channels == 1 and bits == 16 and random.random() < 0.4
    options = {"photometric": "miniswhite"} if white_zero else {}
    data, form = deep_file(65535 - values if white_zero else values, random, turn, **options)
    about = f"{form} {channels} of {bits} bits, turned {turn} {options}"
    colors = shown(values)
    if bits < 16 and random.random() < 0.4:
        return Drawn(data, about, None, f"with values up to {colors.max()}: either a picture of {bits} bits")
    setting = "" if bits == 16 else f"bits={bits}"
    picture = 255 - ((65535 - colors) >> 8) if white_zero else colors >> (bits - 8)
    return Drawn(data, about, TURNS[turn](picture.astype(np.uint8)), pixels=setting)


def many(random: np.random.Generator) -> Drawn:
    """Channels without a stated meaning."""
    dtype = [np.uint8, np.uint16][int(random.integers(2))]
    count, turn = int(random.integers(2, 8)), int(random.integers(1, 9))
    values = scene(random, count, dtype)
    photometric = "rgb" if count > 3 and random.random() < 0.5 else "minisblack"
    extra = {"extrasamples": [0] * (count - (3 if photometric == "rgb" else 1)), "photometric": photometric}
    data, form = deep_file(values, random, turn, **extra)
    about = f"{form} {count} of {np.dtype(dtype)} {photometric}"
    if random.random() < 0.4:
        return Drawn(data, about, None, f"{count} channels of {np.dtype(dtype)} with values up to {values.max()}, and ")
    picked = [int(number) for number in random.integers(0, count, int(random.choice([1, 3])))]
    picture = shown(values[..., picked] >> (8 * (np.dtype(dtype).itemsize - 1))).astype(np.uint8)
    return Drawn(data, about, TURNS[turn](picture), pixels=f"channels={':'.join(map(str, picked))}")


def ranged(random: np.random.Generator) -> Drawn:
    """Floats, and whole numbers with a sign."""
    kind, turn = str(random.choice(["f4", "f8", "f2", "i1", "i2", "i4"])), int(random.integers(1, 9))
    values = scene(random, int(random.choice([1, 3]))).astype(float)
    values = (values / 255 if kind[0] == "f" else np.round(values - 128)).astype(kind)
    options = {"photometric": "rgb" if values.shape[-1] == 3 else "minisblack"}
    data, form = deep_file(values, random, turn, **options)
    about = f"{form} {values.shape} of {np.dtype(kind)}"
    if random.random() < 0.4:
        return Drawn(data, about, None, f"of {np.dtype(kind)} with values from ")
    low, high = sorted(float(end) for end in np.round(random.uniform(values.min(), values.max(), 2), 2))
    high += high == low
    share = ((values.astype(float) - low) / (high - low)).clip(0, 1)
    picture = shown(np.rint(share * 255).astype(np.uint8))
    return Drawn(data, about, TURNS[turn](picture), pixels=f"range={low}:{high}")


def composited(random: np.random.Generator) -> Drawn:
    format = str(random.choice(["PNG", "WEBP", "TIFF"]))
    image = as_image(scene(random, 4))
    color = str(random.choice(["white", "black", "#204060"]))
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    ground = Image.alpha_composite(Image.new("RGBA", image.size, color), image)
    data = saved(image, format, **options)
    return Drawn(data, f"{format} on {color}", np.array(ground.convert("RGB")), pixels=f"background={color}")


def profiled(random: np.random.Generator) -> Drawn:
    format = str(random.choice(["PNG", "WEBP", "TIFF"]))
    image = as_image(scene(random, 3))
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    profile = [srgb.tobytes(), lab.tobytes(), b"none"][int(random.integers(3))]
    options = {"lossless": True} if format == "WEBP" else {}
    expected = image
    if profile == srgb.tobytes():
        converted = ImageCms.profileToProfile(image, srgb, srgb, outputMode="RGB")
        assert converted is not None
        expected = converted
    data = saved(image, format, icc_profile=profile, **options)
    return Drawn(data, f"{format}, a profile of {len(profile)} bytes", np.array(expected), pixels="color=srgb")


def damaged(random: np.random.Generator) -> Drawn:
    """A picture of which a part is missing."""
    whole = saved(as_image(scene(random, 3)), str(random.choice(["PNG", "JPEG", "WEBP", "BMP"])))
    return Drawn(whole[: len(whole) * 2 // 3], "cut", None)


KINDS: tuple[Callable[[np.random.Generator], Drawn], ...]
KINDS = (jpeg, jpeg, jpeg, png, png, palette, bilevel, lossless, lossless, avif, deep, deep, many, ranged, composited)
KINDS += (profiled, damaged)


def reference(picture: np.ndarray, steps: Preprocessing) -> torch.Tensor:
    """The row [3, crop, crop] by torchvision's own transforms."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    resize = [steps.resize] if isinstance(steps.resize, int) else list(steps.resize)
    pixels = transforms.resize(pixels, resize, InterpolationMode(steps.interpolation), antialias=True)
    return transforms.center_crop(pixels, [steps.crop, steps.crop])


@pytest.mark.parametrize("part", range(10))
def test_every_image_is_the_reference_s_picture_or_rejected_as_it_says(part: int) -> None:
    for number in range(part, IMAGES, 10):
        random = np.random.default_rng((16, number))
        drawn = KINDS[number % len(KINDS)](random)
        size = int(random.choice([8, 16, 33, 64]))
        resize = size if random.random() < 0.7 else (size, int(random.integers(size, 2 * size)))
        interpolation = random.choice(["bilinear", "bicubic"])
        steps = Preprocessing(
            resize,
            size,
            interpolation,
            (0.5,) * 3,
            (0.5,) * 3,
            pixels=parse_pixels(drawn.pixels),
        )
        decoder, about = ImageDecoder(steps), f"image {number}: {drawn.about} {drawn.pixels}, resized to {resize}"
        rows = []
        for make in (decoder, PartialDecoder(decoder)):
            buffer = make.new_buffer(1)
            try:
                buffer.decode_into(0, drawn.data)
            except RejectedInputError as error:
                assert drawn.picture is None and drawn.reason in str(error), f"{about}: {error}"
            else:
                rows.append(buffer.to_batch(1))
        if drawn.picture is None:
            assert not rows, about
            continue
        row, expected = rows[0]["images"][0], reference(drawn.picture, steps)
        off = (row.int() - expected.int()).abs().float()
        # Lossless: to the bit. A JPEG is decoded by torchvision and by Pillow, which round the same decoded values in
        # two ways; and where it is far larger than needed as a draft, whose pixels are means of blocks of the image,
        # resized by Pillow. Both differ from the whole picture, resized by torch, by less than a level on average.
        assert off.mean() <= drawn.off and off.max() <= 12 * bool(drawn.off), f"{about}: {off.mean()}, {off.max()}"
        assert torch.equal(rows[1]["decoded"][0], row) if len(rows[1]["decoded"]) else " turned 1" in about, about
