"""A picture is not rejected for what stands beside it in its file; what it is without that is the reference."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

from embedx.data.decoding.images import decode
from embedx.data.reading.files import RejectedInputError

PICTURE = np.random.default_rng(5).integers(0, 256, (24, 36, 3), dtype=np.uint8)
NO_EXIF = b"Exif\0\0no tiff header"
SIX = Image.Exif()
SIX[0x0112] = 6
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def encode(format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, format, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes, *, crc: int | None = None) -> bytes:
    check = zlib.crc32(kind + content) if crc is None else crc
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def png(*chunks: bytes, behind: bool = False, **options: Any) -> bytes:
    """A PNG with chunks before or behind its pixels."""
    plain = encode("PNG", **options)
    at = plain.index(b"IEND") - 4 if behind else plain.index(b"IDAT") - 4
    return plain[:at] + b"".join(chunks) + plain[at:]


def jpeg(*segments: tuple[int, bytes]) -> bytes:
    plain = encode("JPEG", quality=95)
    parts = (bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body for marker, body in segments)
    return plain[:2] + b"".join(parts) + plain[2:]


def webp(*chunks: tuple[bytes, bytes], flags: int = 0, cut: int = 0) -> bytes:
    """An extended WebP; the last bytes of the last chunk can be missing."""
    plain = encode("WEBP", lossless=True)
    header = struct.pack("<I", flags) + struct.pack("<I", 35)[:3] + struct.pack("<I", 23)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + header + plain[12:]
    for kind, content in chunks:
        body += kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body[: len(body) - cut]


def gif(*extensions: bytes) -> bytes:
    plain = encode("GIF")
    at = 13 + (3 << ((plain[10] & 7) + 1) if plain[10] & 0x80 else 0)
    return plain[:at] + b"".join(extensions) + plain[at:]


def tiff(*tags: tuple[int, int, bytes], order: str = "<", big: bool = False, turn: int = 1) -> bytes:
    """An uncompressed TIFF with further tags, each of a number, a type and a value of any length."""
    entries = {256: (4, 36), 257: (4, 24), 259: (3, 1), 262: (3, 2), 274: (3, turn), 277: (3, 3), 278: (4, 24)}
    start = 16 if big else 8
    pixels = PICTURE.tobytes()
    out = struct.pack(order + "HHH" if big else order + "H", *((43, 8, 0) if big else (42,)))
    out = {"<": b"II", ">": b"MM"}[order] + out + struct.pack(order + ("Q" if big else "I"), start + len(pixels) + 6)
    out += pixels + struct.pack(order + "3H", 8, 8, 8)
    every: dict[int, tuple[int, bytes, int]] = {}
    for tag, (kind, number) in entries.items():
        every[tag] = (kind, struct.pack(order + {3: "H", 4: "I"}[kind], number), 1)
    every[258] = (3, struct.pack(order + ("Q" if big else "I"), start + len(pixels)), 3)
    if big:
        every[258] = (3, struct.pack(order + "3H", 8, 8, 8), 3)
    every[273] = (4, struct.pack(order + "I", start), 1)
    every[279] = (4, struct.pack(order + "I", len(pixels)), 1)
    room, behind = 8 if big else 4, b""
    at = len(out) + (8 if big else 2) + (20 if big else 12) * (len(every) + len(tags)) + room
    for tag, kind, value in tags:
        if len(value) > room:
            every[tag] = (kind, struct.pack(order + ("Q" if big else "I"), at + len(behind)), len(value))
            behind += value
        else:
            every[tag] = (kind, value, len(value))
    out += struct.pack(order + ("Q" if big else "H"), len(every))
    for tag, (kind, value, count) in sorted(every.items()):
        out += struct.pack(order + ("HHQ" if big else "HHI"), tag, kind, count) + value.ljust(room, b"\0")
    return out + bytes(room) + behind


def texts(*sizes: int) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for number, size in enumerate(sizes):
        info.add_text(f"history {number}", "x" * size, zip=True)
    return info


LOSSLESS = {
    "png, exif": encode("PNG", exif=NO_EXIF),
    "png, a long text": encode("PNG", pnginfo=texts(2_000_000)),
    "png, a very long text": encode("PNG", pnginfo=texts(40_000_000)),
    "png, many long texts": encode("PNG", pnginfo=texts(*[15_000_000] * 5)),
    "png, a profile of 2 MB": png(chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2_000_000)))),
    "png, a profile of 40 MB": png(chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(40_000_000)))),
    "png, a profile packed in another way": png(chunk(b"iCCP", b"icc\0\7" + zlib.compress(bytes(200)))),
    "png, a profile that can't be unpacked": png(chunk(b"iCCP", b"icc\0\0none")),
    "png, a text packed in another way": png(chunk(b"zTXt", b"title\0\7" + zlib.compress(b"x"))),
    "png, a wrong checksum of a text": png(chunk(b"tEXt", b"title\0x", crc=1)),
    "png, a wrong checksum behind": png(chunk(b"tEXt", b"title\0x", crc=1), behind=True),
    "png, a wrong checksum of an unknown chunk": png(chunk(b"prVt", b"x", crc=1)),
    "png, a wrong checksum of exif": png(chunk(b"eXIf", SIX.tobytes()[6:], crc=1)),
    "png, a cut resolution": png(chunk(b"pHYs", b"\0\0")),
    "png, a cut gamma": png(chunk(b"gAMA", b"\0")),
    "png, cut chromaticities": png(chunk(b"cHRM", b"\0\0\0")),
    "png, a cut colour space": png(chunk(b"sRGB", b"")),
    "png, a cut animation": png(chunk(b"acTL", b"\0")),
    "png, a text that is no text": png(chunk(b"iTXt", b"\xff\xfe\0\1\0\0\0\xff"), behind=True),
    "png, cut within a text behind": png(chunk(b"tEXt", b"title\0" + b"x" * 99), behind=True)[:-60],
    "webp, exif": encode("WEBP", lossless=True, exif=NO_EXIF),
    "webp, xmp that is none": encode("WEBP", lossless=True, xmp=b"\xff\0tiff:Orientation"),
    "webp, a profile that is none": encode("WEBP", lossless=True, icc_profile=b"none"),
    "webp, flags without chunks": webp(flags=0x2C),
    "webp, an unknown chunk": webp((b"what", b"x" * 31)),
    "webp, a cut chunk at the end": webp((b"EXIF", b"x" * 31), flags=8, cut=20),
    "gif, a comment": gif(b"\x21\xfe\3abc\0"),
    "gif, xmp that is none": gif(b"\x21\xff\x0bXMP DataXMP\2<x\0"),
    "gif, an extension that is none": gif(b"\x21\xab\1x\0", b"\x21\xff\1x\0"),
    "tiff, xmp of another type": tiff((700, 3, b"\1\0\2\0")),
    "tiff, an exif directory beyond the end": tiff((34665, 4, b"\xff\xff\xff\x7f")),
    "tiff, big-endian, an exif directory beyond the end": tiff((34665, 4, b"\x7f\xff\xff\xff"), order=">"),
    "tiff, a profile of 2 MB": tiff((34675, 7, bytes(2_000_000))),
    "tiff, a long text": tiff((270, 2, b"x" * 2_000_000 + b"\0")),
    "tiff, an unknown type": tiff((50000, 99, b"\1\2\3\4")),
    "tiff, big, xmp of another type": tiff((700, 3, b"\1\0\2\0"), big=True),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_picture_counts_whatever_stands_beside_it(name: str) -> None:
    plain = PICTURE
    if name.startswith("gif"):
        plain = np.array(Image.open(io.BytesIO(encode("GIF"))).convert("RGB"))
    assert np.array_equal(decode(LOSSLESS[name]).permute(1, 2, 0).numpy(), plain)


JPEGS = {
    "exif": jpeg((0xE1, NO_EXIF)),
    "xmp that is none": jpeg((0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfetiff:Orientation")),
    "a profile of 2 MB": encode("JPEG", quality=95, icc_profile=bytes(2_000_000)),
    "a cut profile": jpeg((0xE2, b"ICC_PROFILE\0")),
    "a part of a profile": jpeg((0xE2, b"ICC_PROFILE\0\3\7" + PROFILE)),
    "a cut header": jpeg((0xE0, b"JFIF\0")),
    "a cut header of Adobe": jpeg((0xEE, b"Adobe")),
    "a directory of pictures that is none": jpeg((0xE2, b"MPF\0none")),
    "a directory of pictures beyond the end": jpeg((0xE2, b"MPF\0MM\0*\x7f\0\0\0")),
    "blocks of Photoshop that are none": jpeg((0xED, b"Photoshop 3.0\x008BIM\4")),
    "a comment that is no text": jpeg((0xFE, b"\xff\xfe\0")),
}


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_counts_whatever_stands_beside_it(name: str) -> None:
    assert torch.equal(decode(JPEGS[name]), decode(encode("JPEG", quality=95)))


@pytest.mark.parametrize(
    "data",
    [
        png(chunk(b"tEXt", b"a\0b", crc=1), exif=SIX.tobytes()),
        tiff((700, 3, b"\1\0\2\0"), turn=6),
        tiff((700, 3, b"\1\0\2\0"), turn=6, order=">"),
    ],
)
def test_the_orientation_stays_where_another_part_is_damaged(data: bytes) -> None:
    assert np.array_equal(decode(data).permute(1, 2, 0).numpy(), np.rot90(PICTURE, -1))


def test_damage_to_the_picture_itself_rejects_it() -> None:
    whole = png(chunk(b"tEXt", b"a\0b", crc=1))
    for part in (whole[:-100], whole.replace(b"IDAT", b"IDAx"), whole[:-20] + bytes(4) + whole[-16:]):
        with pytest.raises(RejectedInputError):
            decode(part)


@pytest.mark.parametrize("stating", ["eXIf", "profile", "xmp", "xmp, packed"])
def test_damage_beside_it_leaves_a_pngs_orientation(stating: str) -> None:
    exif = SIX.tobytes()
    xmp = b'<x><rdf:Description tiff:Orientation="6"/></x>'
    stated = {
        "eXIf": chunk(b"eXIf", exif[6:]),
        "profile": chunk(
            b"zTXt",
            b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n%8d\n%s\n" % (len(exif), exif.hex().encode())),
        ),
        "xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        "xmp, packed": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)),
    }[stating]
    damaged = chunk(b"tEXt", b"note\0text", crc=1)
    assert np.array_equal(decode(png(damaged, stated)).permute(1, 2, 0).numpy(), np.rot90(PICTURE, -1))


def test_a_transparent_colour_that_is_cut_short_is_left_out() -> None:
    assert np.array_equal(decode(png(chunk(b"tRNS", b"\0"))).permute(1, 2, 0).numpy(), PICTURE)
