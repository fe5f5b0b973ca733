"""Memory and time of decoding: bounded by what the header says, before anything is decoded."""

from __future__ import annotations

import importlib
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from embedx.data.decoding import jxl, memory, pictures
from embedx.data.decoding.images import decode
from embedx.data.decoding.jpeg import MOST_SCANS
from embedx.data.reading.files import RejectedInputError
from embedx.values import MAX_PIXELS

tifffile = pytest.importorskip("tifffile")
SIDE = 1200
RAMP = np.add.outer(np.arange(SIDE), np.arange(SIDE))
DEEP = np.repeat((RAMP * 101 % 65536).astype(np.uint16)[..., None], 4, -1)
PHOTO = Image.fromarray(np.stack([RAMP % 251, 250 - RAMP % 251, RAMP // 20], -1).astype(np.uint8))
CLEAR = PHOTO.copy()
CLEAR.putalpha(Image.fromarray((RAMP % 251).astype(np.uint8)))


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(width: int, height: int, color_type: int, bits: int, pixels: bytes = b"\0", *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def deep_png(values: Any, color_type: int) -> bytes:
    height, width = values.shape[:2]
    rows = np.ascontiguousarray(values.reshape(height, -1)).astype(">u2").view(np.uint8)
    return png(width, height, color_type, 16, zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes(), 1))


def tiff(values: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def large_pictures() -> dict[str, Callable[[], bytes]]:
    importlib.import_module("pillow_jxl")
    importlib.import_module("pillow_heif").register_heif_opener()
    still = saved(Image.new("P", (8, 8)), "GIF")
    rgb = {"photometric": "rgb", "compression": "zlib", "rowsperstrip": SIDE}
    return {
        "jpeg": lambda: saved(PHOTO, "JPEG"),
        "progressive": lambda: saved(PHOTO, "JPEG", progressive=True, subsampling=0),
        "cmyk": lambda: saved(PHOTO.convert("CMYK"), "JPEG", progressive=True),
        "png": lambda: saved(CLEAR, "PNG", compress_level=1),
        "gray": lambda: saved(PHOTO.convert("L"), "PNG", compress_level=1),
        "png16": lambda: deep_png(DEEP, 6),
        "dark16": lambda: deep_png(DEEP // 32, 6),
        "gray16": lambda: deep_png(DEEP[..., :1], 0),
        "pairs16": lambda: deep_png(DEEP[..., :2] // 32, 4),
        "gif": lambda: saved(PHOTO.quantize(16), "GIF", transparency=3),
        "screen": lambda: still[:6] + struct.pack("<HH", SIDE, SIDE) + still[10:],
        "webp": lambda: saved(CLEAR, "WEBP", quality=50, method=0),
        "animation": lambda: saved(PHOTO, "WEBP", method=0, quality=30, save_all=True, append_images=[CLEAR]),
        "bmp": lambda: saved(PHOTO, "BMP"),
        "ppm16": lambda: b"P6 %d %d 65535\n" % (SIDE, SIDE) + DEEP[..., :3].astype(">u2").tobytes(),
        "tiff": lambda: saved(PHOTO, "TIFF", compression="tiff_lzw"),
        "tiff16": lambda: tiff(DEEP[..., :3], **rgb),
        "planes": lambda: tiff(np.moveaxis(DEEP[..., :3], -1, 0), photometric="rgb", planarconfig="separate"),
        "floats": lambda: tiff(DEEP[..., :3].astype(np.float32), **rgb),
        "channels": lambda: tiff(DEEP[..., [0, 1, 2, 3] * 2], photometric="minisblack", planarconfig="contig"),
        "jpeg2000": lambda: saved(PHOTO, "JPEG2000", irreversible=True, quality_layers=[60]),
        "avif": lambda: saved(CLEAR, "AVIF", speed=10),
        "heic": lambda: saved(CLEAR, "HEIF", quality=30),
        "jxl": lambda: saved(CLEAR, "JXL", effort=1),
    }


MEASURE = """
import json, sys
from pathlib import Path
from embedx.data.decoding import memory
from embedx.data.decoding.images import decode
from embedx.data.reading.files import RejectedInputError
from embedx.recipe import PixelOptions

def peak(name):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if name in line)

for name in sys.argv[1:]:
    data, options = Path(name).read_bytes(), PixelOptions(range=(0, 65535), bits=16 if "dark16" in name else None)
    try:
        with memory.allow(0):
            decode(data, options=options)
    except memory.MemoryNeededError as error:
        said = error.needed
    Path("/proc/self/clear_refs").write_text("5")
    before = peak("VmRSS")
    try:
        decode(data, options=options)
    except RejectedInputError as error:
        print(error, file=sys.stderr)
    print(json.dumps([Path(name).name, (peak("VmHWM") - before) * 1024, said]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="only Linux tells the peak anew")
@pytest.mark.parametrize("names", ["progressive png16 floats", pytest.param("", marks=pytest.mark.soak)])
def test_no_format_takes_more_memory_than_its_header_says(tmp_path: Path, names: str) -> None:
    for name, make in large_pictures().items():
        if not names or name in names.split():
            (tmp_path / name).write_bytes(make())
    for format in () if names else ("AVIF", "HEIF", "JXL", "JPEG2000", "WEBP"):  # first, to load the libraries
        (tmp_path / f"0{format}").write_bytes(saved(Image.new("RGBA", (16, 16)), format))
    (tmp_path / "0tiff").write_bytes(tiff(DEEP[:8, :8, :3].astype(np.float32), photometric="rgb", compression="zlib"))
    paths = sorted(str(path) for path in tmp_path.iterdir())
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}  # freed memory is returned
    ran = subprocess.run([sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    rows = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(rows) == len(paths)
    print(*((name, round(taken / SIDE**2, 1), said / SIDE**2) for name, taken, said in rows), sep="\n")
    assert not [name for name, taken, said in rows if taken > said + 8 * 1024**2]


def test_rendering_by_strips_gives_the_pixels_of_the_whole_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    small = CLEAR.resize((30, 20))
    exif = Image.Exif()
    for turn in range(1, 9):
        exif[0x112] = turn
        for image in (small, small.convert("RGB"), small.convert("LA"), small.convert("RGB").quantize(9)):
            data = saved(image, "PNG", exif=exif)
            expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
            monkeypatch.setattr(pictures, "_STRIP_PIXELS", 70)
            assert np.array_equal(decode(data).permute(1, 2, 0).numpy(), expected), (turn, image.mode)
    values = DEEP[:20, :30, :3] | 0x8000
    assert np.array_equal(decode(tiff(values, photometric="rgb")).permute(1, 2, 0).numpy(), values >> 8)


def test_an_image_that_takes_too_much_memory_is_rejected_by_its_header_and_let_in_as_advised() -> None:
    huge = png(13000, 13000, 6, 16)
    with pytest.raises(RejectedInputError, match=r"13000x13000 such pixels takes 2.5 GiB of memory, more than 2.0 GiB"):
        decode(huge)
    try:
        decode(huge)
    except RejectedInputError as error:
        advised = int(str(error).split("--max-pixels ")[1].split()[0])
    assert memory.limit(advised - 1) < 13000**2 * 16 <= memory.limit(advised)
    assert memory.limit(MAX_PIXELS) == memory.limit(1000)  # fewer pixels are bound by themselves
    memory.check(memory.Frame(10000, 10000, 9), MAX_PIXELS)  # the largest kind of JPEG


def test_a_tile_far_larger_than_its_picture_counts() -> None:
    data = bytearray(tiff(DEEP[:16, :16, :3], photometric="rgb", tile=(16, 16), compression="zlib"))
    for tag in (322, 323):  # its width and height, which are numbers of 16 or 32 bits
        place = data.index(struct.pack("<H", tag))
        data[place : place + 12] = struct.pack("<HHII", tag, 4, 1, 65536)
    with pytest.raises(RejectedInputError, match=r"16x16 such pixels takes 24.0 GiB of memory"):
        decode(bytes(data))


def test_a_jpeg_xl_is_measured_before_it_is_decoded() -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    for width, height in (
        (8, 8),
        (64, 64),
        (30, 20),
        (1200, 1000),
        (640, 480),
        (513, 2),
        (9000, 3),
        (160, 90),
        (32, 16),
    ):
        data = imagecodecs.jpegxl_encode(np.zeros((height, width, 3), np.uint8))
        assert jxl.size_of(data) == (width, height)
    bits = 0 | 3 << 1 | (10**6 - 1) << 3 | 1 << 33  # not small; a height in 30 bits; as wide as high
    with pytest.raises(RejectedInputError, match=r"too large: 1000000x1000000 = 1000000000000 pixels"):
        decode(b"\xff\x0a" + bits.to_bytes(8, "little") + bytes(50))


def many_scans(scans: int) -> bytes:
    """A progressive JPEG whose second scan comes again and again."""
    data = saved(PHOTO.resize((64, 48)), "JPEG", progressive=True)
    second = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    end = data.index(b"\xff", second + 12)
    while data[end + 1] == 0:
        end = data.index(b"\xff", end + 1)
    return data[:second] + data[second:end] * scans + data[end:]


def test_a_jpeg_of_thousands_of_scans_is_rejected_and_one_of_many_is_not() -> None:
    with pytest.raises(RejectedInputError, match=r"a JPEG of 20\d\d scans, more than 100"):
        decode(many_scans(2000))
    skipped = many_scans(2000).replace(b"\xff\xc4", b"\0\xff\0\xff\xc4", 1)  # bytes that decoders skip
    with pytest.raises(RejectedInputError, match=r"a JPEG of 20\d\d scans, more than 100"):
        decode(skipped)
    assert decode(many_scans(MOST_SCANS - 20)).shape == (3, 48, 64)
    video = saved(PHOTO, "JPEG") + b"\0\0\0\x18ftypmp42" + b"\xff\xda\0\x08" * 5000  # as phones append it
    assert decode(video).shape == (3, SIDE, SIDE)
    thumbnail = saved(PHOTO.resize((64, 48)), "JPEG", comment=b"\xff\xda" * 200)
    assert decode(thumbnail).shape == (3, 48, 64)


def long_pictures() -> dict[str, Callable[[], bytes]]:
    """Small files of which each has thousands of something."""
    dot = Image.new("P", (4, 4))
    frames = [Image.new("P", (4, 4), number % 200) for number in range(200)]
    jpeg = saved(PHOTO.resize((64, 48)), "JPEG")
    bomb = chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(bytes(20 * 1024**2)))
    pixels = zlib.compress(bytes(4 * (1 + 4 * 3)))
    strips = tiff(np.zeros((20_000, 4), np.uint8), compression="zlib", rowsperstrip=1)
    loop = bytearray(tiff(np.zeros((8, 8), np.uint8)))
    first = struct.unpack_from("<I", loop, 4)[0]
    entries = struct.unpack_from("<H", loop, first)[0]
    struct.pack_into("<I", loop, first + 2 + 12 * entries, first)  # the first directory is the next one too
    return {
        "gif": lambda: saved(dot, "GIF", save_all=True, append_images=frames),
        "webp": lambda: saved(dot, "WEBP", save_all=True, append_images=frames[:40], method=0),
        "apng": lambda: saved(dot, "PNG", save_all=True, append_images=frames[:100]),
        "segments": lambda: jpeg[:2] + b"\xff\xe5\0\x04ab" * 20_000 + jpeg[2:],
        "comments": lambda: jpeg[:2] + b"\xff\xfe\0\x04ab" * 20_000 + jpeg[2:],
        "restarts": lambda: saved(PHOTO.resize((400, 300)), "JPEG", restart_marker_blocks=1),
        "texts": lambda: png(4, 4, 2, 8, pixels, *[bomb] * 20),
        "profiles": lambda: png(4, 4, 2, 8, pixels, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(20 * 1024**2)))),
        "strips": lambda: strips,
        "loop": lambda: bytes(loop),
    }


LONG = r"""
import re, sys, time
from pathlib import Path
from embedx.data.decoding.images import decode
for name in sys.argv[1:]:
    started = time.process_time()
    decode(Path(name).read_bytes())
    assert time.process_time() - started < 20, name
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # ru_maxrss knows the parent's
    print(Path(name).name, time.process_time() - started, peak // 1024)
"""


def test_small_files_with_thousands_of_parts_take_neither_minutes_nor_gigabytes(tmp_path: Path) -> None:
    for name, make in long_pictures().items():
        (tmp_path / name).write_bytes(make())
    ran = subprocess.run([sys.executable, "-c", LONG, *map(str, tmp_path.iterdir())], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert len(lines) == 10 and all(int(mebibytes) < 1500 for _, _, mebibytes in lines), ran.stdout
