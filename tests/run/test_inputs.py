"""One run over every kind of bad and odd file: each gives its own picture's row, or a reject with its reason."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import socket
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import embedx
from embedx import ExtractConfig
from embedx.cli.app import run
from embedx.data.decoding.images import preprocess
from embedx.errors import InputError
from embedx.recipe import Preprocessing
from embedx.run.extract import extract
from embedx.run.inputs import list_inputs
from embedx.store.format.layout import index_files
from tests.runs import assert_visible_units_are_whole, digests

pytestmark = pytest.mark.usefixtures("one_thread")
BACKBONE = "tests.models.backbones.programs:pixels"
STEPS = Preprocessing(resize=16, crop=16, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
SHADES = (0, 60, 120, 180, 240)


def picture(width: int = 24, height: int = 18) -> Image.Image:
    """Blocks of a few colours, not the same whichever way it is turned."""
    y, x = np.mgrid[:height, :width] // 6
    channels = [np.take(SHADES, (x * weight + y * (3 - weight) + weight) % len(SHADES)) for weight in range(3)]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


P, OTHER = picture(), ImageOps.invert(picture())


def encoded(format: str, image: Image.Image = P, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


TURNED_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def oriented(format: str, orientation: int, **options: Any) -> bytes:
    """What becomes the picture when it is turned as the EXIF orientation says."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = P.transpose(TURNED_BACK[orientation]) if orientation in TURNED_BACK else P
    return encoded(format, stored, exif=exif, **options)


def deep_png(channels: int) -> bytes:
    """16 bits per channel, with and without alpha, in a form that Pillow does not write."""
    pixels = np.asarray(P.convert("RGBA"))[..., :channels].astype(">u2") * 256 + 77
    if channels == 4:
        pixels[..., 3] = 999
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", *P.size, 16, 6 if channels == 4 else 2, 0, 0, 0)
    return png_of(header, zlib.compress(rows))


def png_of(header: bytes, data: bytes) -> bytes:
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def palette_png(**options: Any) -> bytes:
    return encoded("PNG", P.quantize(125), **options)


def animated(format: str, **options: Any) -> bytes:
    return encoded(format, save_all=True, append_images=[OTHER, P], duration=50, **options)


SAME: dict[str, bytes] = {
    "plain.png": encoded("PNG"),
    "animated.gif": animated("GIF"),
    "animated.png": animated("PNG"),
    "animated.webp": animated("WEBP", lossless=True),
    "16-bit.png": deep_png(3),
    "16-bit with alpha.png": deep_png(4),
    "palette with alpha.png": palette_png(transparency=bytes(range(125))),
    "palette with a transparent colour.png": palette_png(transparency=2),
    "pages.tif": encoded("TIFF", save_all=True, append_images=[OTHER]),
    **{f"exif {value}.png": oriented("PNG", value) for value in range(1, 9)},
    **{f"exif {value}.tif": oriented("TIFF", value) for value in range(1, 9)},
    "wrong suffix.jpg": encoded("PNG"),
    "new\nline.png": encoded("PNG"),
    "'quoted' \"twice\" $(echo).png": encoded("PNG"),
    "\N{GRINNING FACE} e\u0301.png": encoded("PNG"),
    "\udcff\udcfe invalid UTF-8.png": encoded("PNG"),
    "n" * 251 + ".png": encoded("PNG"),
    " .png": encoded("PNG"),
    "folder.jpg/inside.png": encoded("PNG"),
}
"""Files that are the picture, pixel by pixel."""
CLOSE: dict[str, bytes] = {
    **{f"exif {value}.jpg": oriented("JPEG", value, quality=100, subsampling=0) for value in range(1, 9)},
    "plain.webp": encoded("WEBP", quality=100),
    "cmyk.jpg": encoded("JPEG", P.convert("CMYK"), quality=100),  # inverted, and marked so, as Adobe's programs do
}
"""Files that are nearly the picture."""
OTHERS: dict[str, Image.Image] = {"1x1.png": Image.new("RGB", (1, 1), (9, 99, 199)), "1x10000.png": picture(1, 10_000)}
"""Files that are another picture, pixel by pixel."""
REJECTED: dict[str, tuple[bytes, str]] = {
    "empty.jpg": (b"", "the file is empty"),
    "text.jpg": (b"no image\n", "not an image of a known format (it begins with b'no image')"),
    "cut.jpg": (encoded("JPEG")[:-80], "can't be decoded: image file is truncated"),
    "cut.png": (encoded("PNG")[:-30], "can't be decoded: image file is truncated"),
    "cut.webp": (encoded("WEBP")[:-30], "can't be decoded: could not create decoder object"),
    "bomb.png": (
        png_of(struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0), b""),
        "too large: 20000x20000 = 400000000 pixels, more than --max-pixels 178956970; raise it to let such images in",
    ),
    "elongated.png": (
        encoded("PNG", Image.new("L", (1, 2_000_000))),
        "too elongated: 1x2000000, resized to 16x32000000 = 512000000 pixels, more than --max-pixels 178956970",
    ),
    "bad\nname\x1b[31m.jpg": (b"?", "not an image of a known format"),
    "\udcff.jpg": (b"", "the file is empty"),
    "x" * 251 + ".jpg": (b"", "the file is empty"),
}
"""Files that are no image, or none that is let in, and how the reason begins."""


def make_special_files(root: Path) -> dict[str, str]:
    """What is no regular file, and a reason for each."""
    (root / "broken link.jpg").symlink_to("nowhere")
    (root / "link loop.jpg").symlink_to("link loop.jpg")
    (root / "device.jpg").symlink_to("/dev/zero")
    (root / "to a folder above.jpg").symlink_to(root)  # which is not gone into again
    (root / "empty folder.jpg").mkdir()
    os.mkfifo(root / "fifo.jpg")
    with socket.socket(socket.AF_UNIX) as unconnected, contextlib.chdir(root):
        unconnected.bind("socket.jpg")
    reasons = {
        "broken link.jpg": "can't be read: No such file or directory",
        "link loop.jpg": "can't be read: Too many levels of symbolic links",
        "device.jpg": "not a regular file",
        "fifo.jpg": "not a regular file",
        "socket.jpg": "not a regular file",
    }
    if os.geteuid() != 0:  # who may read everything
        (root / "locked.jpg").write_bytes(encoded("PNG"))
        (root / "locked.jpg").chmod(0)
        reasons["locked.jpg"] = "can't be read: Permission denied"
    return reasons


def cropped(image: Image.Image) -> np.ndarray:
    """[3, 16, 16] uint8: what the backbone should see of a picture."""
    return preprocess(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1), STEPS).numpy()


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Mean of the absolute differences, in units of uint8."""
    return float(np.abs(one.astype(int) - other).mean())


def rows_of(store: Path) -> dict[str, np.ndarray]:
    """[3, 16, 16] uint8 per key: what it saw."""
    loaded = embedx.open(store).load("all")
    pixels = (loaded.embeddings.reshape(-1, 3, 16, 16) * 255).round().astype(np.uint8)
    return dict(zip(loaded.keys, pixels, strict=True))


def as_key(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def test_the_picture_is_not_like_itself_turned_or_inverted() -> None:
    for other in (OTHER, *map(P.transpose, Image.Transpose)):
        assert distance(cropped(other), cropped(P)) > 24


@pytest.mark.timeout(60)
def test_every_file_is_its_own_row_or_a_reject_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def embedx_says(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["embedx", *arguments])
        return run(), capfd.readouterr().out

    root, store = tmp_path / "images", tmp_path / "store"
    contents = SAME | CLOSE | {name: encoded("PNG", image) for name, image in OTHERS.items()}
    contents |= {name: content for name, (content, _) in REJECTED.items()}
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    reasons = make_special_files(root) | {name: reason for name, (_, reason) in REJECTED.items()}

    arguments = ("--backbone", BACKBONE, "--data", str(root), "--out", str(store), "-j", "0", "-b", "8", "--quiet")
    code, _ = embedx_says("extract", *arguments)
    assert code == 3

    rows = rows_of(store)
    assert rows.keys() == {as_key(name) for name in SAME | CLOSE | OTHERS}
    for name in SAME:
        assert np.array_equal(rows[as_key(name)], cropped(P)), name
    for name in CLOSE:
        assert distance(rows[as_key(name)], cropped(P)) < 12, name
    for name, image in OTHERS.items():
        assert np.array_equal(rows[name], cropped(image)), name
    rejected = {row["key"]: row["reason"] for row in embedx.open(store).index().to_pylist() if row["reason"]}
    assert rejected.keys() == {as_key(name) for name in reasons}
    for name, reason in reasons.items():
        assert rejected[as_key(name)].startswith(reason), name

    code, listed = embedx_says("info", str(store), "--rejected")
    lines = listed.splitlines()
    assert code == 0 and len(lines) == len(reasons)
    assert all(line.replace("\t", " ").isprintable() and line.count("\t") == 2 for line in lines)
    assert any("bad\\nname\\x1b[31m.jpg\tnot an image" in line for line in lines)


def test_what_changes_or_vanishes_between_plan_and_read_is_taken_as_it_is_then(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    for name in ("changed.png", "cut.png", "gone.png", "replaced.png", "same.png"):
        (root / name).write_bytes(encoded("PNG"))
    config = ExtractConfig(backbone=BACKBONE, data=(str(root),), out=tmp_path / "store", workers=0)
    config = dataclasses.replace(config, max_unavailable="1")
    plan = list_inputs(config)
    (root / "changed.png").write_bytes(encoded("PNG", OTHER))
    (root / "cut.png").write_bytes(encoded("PNG")[:-40])
    (root / "gone.png").unlink()
    (root / "replaced.png").unlink()
    os.mkfifo(root / "replaced.png")
    summary = extract(config, plan=plan)
    assert (summary.rejected, summary.unavailable) == (2, 1)

    rows, index = rows_of(tmp_path / "store"), embedx.open(tmp_path / "store").index().to_pylist()
    assert rows.keys() == {"changed.png", "same.png"}
    assert np.array_equal(rows["same.png"], cropped(P)) and np.array_equal(rows["changed.png"], cropped(OTHER))
    seen = {row["key"]: row for row in index}
    for name in ("changed.png", "cut.png", "same.png"):
        data = (root / name).read_bytes()
        assert (seen[name]["bytes"], seen[name]["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert "truncated" in seen["cut.png"]["reason"]
    assert seen["gone.png"]["reason"] == "can't be read: No such file or directory"
    assert seen["gone.png"]["status"] == "unavailable"  # as its disk may be away
    assert seen["replaced.png"]["reason"] == "not a regular file"


def test_the_first_reject_can_end_the_run_and_what_is_committed_stays(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    for number in range(12):
        (root / f"{number:02}.png").write_bytes(encoded("PNG", picture(20 + number, 20)))
        os.utime(root / f"{number:02}.png", ns=(0, 0))
    contents = {name: (root / name).read_bytes() for name in ("07.png", "09.png")}
    config = ExtractConfig(
        backbone=BACKBONE,
        data=(str(root),),
        out=tmp_path / "store",
        workers=0,
        batch_size=2,
        shard_size=2 * (3 * 16 * 16 * 4 + 8),
        on_error="fail",
    )
    extract(dataclasses.replace(config, out=tmp_path / "undisturbed"))
    for name in contents:
        (root / name).write_bytes(b"")
    with pytest.raises(
        InputError, match=r"^07\.png: the file is empty; repair or remove it, or go on without it by --on-e"
    ):
        extract(config)
    assert_visible_units_are_whole(config.out)
    assert len(index_files(config.out)) <= 3
    for name, content in contents.items():
        (root / name).write_bytes(content)
        os.utime(root / name, ns=(0, 0))
    assert extract(config).rows == 12
    assert digests(config.out) == digests(tmp_path / "undisturbed")
