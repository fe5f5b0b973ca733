"""One reading of the orientation, whatever the format, the decoder and the size; the reference is Pillow's."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features

from embedx.data.decoding.images import ImageDecoder, decode, is_plain_jpeg
from embedx.recipe import Preprocessing

HALF = np.zeros((40, 60, 3), np.uint8)
HALF[:, :30] = 255
HALF[:6, :6] = (255, 0, 0)
TAG = 0x0112
XMP = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
TURNED_BY_XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
SIZES = (4, 5, 8, 40, 56)
"""Sizes on both sides of the one from which a JPEG of 40 rows is decoded as a draft, and one at which it grows."""


def encode(format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(HALF).save(file, format, **options)
    return file.getvalue()


def exif(order: str, kind: int, value: bytes, *, count: int = 1) -> bytes:
    """An EXIF segment whose orientation has this type and these four bytes."""
    magic, sign = {"II": (b"II", "<"), "MM": (b"MM", ">")}[order]
    return b"Exif\0\0" + magic + struct.pack(sign + "HIHHHI", 42, 8, 1, TAG, kind, count) + value + bytes(4)


def with_segments(*bodies: bytes) -> bytes:
    plain = encode("JPEG", quality=95)
    segments = (b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body for body in bodies)
    return plain[:2] + b"".join(segments) + plain[2:]


SHORT = exif("MM", 3, b"\0\6\0\0")
JPEGS = {
    "plain": with_segments(SHORT),
    "little-endian": with_segments(exif("II", 3, b"\6\0\0\0")),
    "xmp first": with_segments(XMP, SHORT),
    "other segment first": with_segments(b"FLIR\0\1", SHORT),
    "both first": with_segments(b"FLIR\0\1", XMP, SHORT),
    "after exif of another value": with_segments(SHORT, XMP.replace(b"/>", b">tiff:Orientation='3'</x:xmpmeta>")),
    "LONG, big-endian": with_segments(exif("MM", 4, b"\0\0\0\6")),
    "LONG, little-endian": with_segments(exif("II", 4, b"\6\0\0\0")),
    "SLONG": with_segments(exif("MM", 9, b"\0\0\0\6")),
    "two values": with_segments(exif("MM", 3, b"\0\6\0\6", count=2)),
    "xmp alone": with_segments(b"http://ns.adobe.com/xap/1.0/\0" + TURNED_BY_XMP),
    "exif that can't be read, and xmp": with_segments(
        b"Exif\0\0no tiff header", b"http://ns.adobe.com/xap/1.0/\0" + TURNED_BY_XMP
    ),
}
"""JPEGs that are to be turned by 90 degrees."""
LEFT = {
    "BYTE, little-endian": with_segments(exif("II", 1, b"\6\0\0\0")),
    "BYTE, big-endian": with_segments(exif("MM", 1, b"\6\0\0\0")),
    "ASCII": with_segments(exif("MM", 2, b"6\0\0\0", count=2)),
    "0": with_segments(exif("MM", 3, b"\0\0\0\0")),
    "9": with_segments(exif("MM", 3, b"\0\x09\0\0")),
    "exif of 1, xmp of 6": with_segments(exif("MM", 3, b"\0\1\0\0"), b"http://ns.adobe.com/xap/1.0/\0" + TURNED_BY_XMP),
    "exif that can't be read": with_segments(b"Exif\0\0no tiff header"),
    "exif of six bytes": with_segments(b"Exif\0\0"),
    "a directory beyond the end": with_segments(b"Exif\0\0MM\0*\0\1\0\0"),
}
"""JPEGs that are to stay as they are."""


def by_pillow(data: bytes) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")))


def at_size(data: bytes, size: int, **options: Any) -> np.ndarray:
    steps = Preprocessing(size, size, "bilinear", mean=(0.5,) * 3, std=(0.5,) * 3, **options)
    decoder = ImageDecoder(steps)
    row = decoder.empty(1)[0]
    decoder.decode_into(row, data)
    return row.numpy().astype(int)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", JPEGS)
def test_a_turned_jpeg_is_turned_at_every_size(name: str, size: int) -> None:
    data = JPEGS[name]
    pixels = at_size(data, size)
    assert np.array_equal(pixels, at_size(JPEGS["plain"], size))
    third = size // 3  # the left half was white, which a turn by 90 degrees brings to the top
    assert pixels[:, 2 * third + 1 :].mean() < 60 < 170 < pixels[:, :third].mean()
    if name != "exif that can't be read, and xmp":  # which Pillow reads no further
        assert (decode(data).permute(1, 2, 0).int() - by_pillow(data).int()).abs().max() <= 2
    steps = Preprocessing(size, size, "bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert not is_plain_jpeg(data, steps), "the GPU's decoder would not turn it"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", LEFT)
def test_another_jpeg_is_left_at_every_size(name: str, size: int) -> None:
    assert np.array_equal(at_size(LEFT[name], size), at_size(encode("JPEG", quality=95), size))
    if "can't be read" not in name:
        assert torch.equal(by_pillow(LEFT[name]), by_pillow(encode("JPEG", quality=95)))
    assert is_plain_jpeg(LEFT[name], Preprocessing(40, 40, "bilinear", mean=(0.5,) * 3, std=(0.5,) * 3))


FORMATS: dict[str, Callable[[bytes], bytes]] = {
    "JPEG": lambda tags: encode("JPEG", quality=95, exif=tags),
    "MPO": lambda tags: encode("MPO", save_all=True, append_images=[Image.fromarray(HALF)], quality=95, exif=tags),
    "PNG": lambda tags: encode("PNG", exif=tags),
    "PNG, a text": lambda tags: encode("PNG", pnginfo=_raw_profile(tags)),
    "WEBP": lambda tags: encode("WEBP", lossless=True, exif=tags),
    "WEBP, animated": lambda tags: encode(
        "WEBP", lossless=True, save_all=True, append_images=[Image.fromarray(255 - HALF)], exif=tags
    ),
    "AVIF": lambda tags: encode("AVIF", exif=tags),
}


def _raw_profile(tags: bytes) -> Any:
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    texts.add_text("Raw profile type exif", f"\nexif\n{len(tags):8}\n{tags.hex()}\n")
    return texts


TAGS = [("MM", 3, value) for value in range(10)] + [
    (order, kind, value) for order in ("II", "MM") for kind in (1, 4) for value in (3, 6)
]
"""Order, type and value."""


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("order", "kind", "value"), TAGS)
def test_every_format_is_turned_as_pillow_turns_it(format: str, kind: int, order: str, value: int) -> None:
    if format == "AVIF" and (not features.check("avif") or kind != 3):
        return  # Pillow's own writer takes no such tags
    packed = struct.pack({"II": "<", "MM": ">"}[order] + {1: "B3x", 3: "H2x", 4: "I"}[kind], value)
    data = FORMATS[format](exif(order, kind, packed))
    expected, pixels = by_pillow(data), decode(data).permute(1, 2, 0)
    assert pixels.shape == expected.shape and (pixels.int() - expected.int()).abs().max() <= 2
    is_turned = kind != 1 and value in (5, 6, 7, 8)
    assert tuple(pixels.shape) == ((60, 40, 3) if is_turned else (40, 60, 3))
    upright = decode(FORMATS[format](exif(order, 3, struct.pack({"II": "<", "MM": ">"}[order] + "HH", 1, 0))))
    assert torch.equal(decode(data, exif=False), upright)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("value", range(1, 9))
def test_tiff_too_is_left_alone_where_that_is_asked(value: int, compression: str | None) -> None:
    options = {"compression": compression} if compression else {}
    data = encode("TIFF", tiffinfo={TAG: value}, **options)
    assert torch.equal(decode(data).permute(1, 2, 0), by_pillow(data))
    assert np.array_equal(decode(data, exif=False).permute(1, 2, 0).numpy(), HALF)
