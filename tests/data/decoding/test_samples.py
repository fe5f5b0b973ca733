"""Deep and many-channelled pixels: read where the file or a setting says how, else rejected with what to say."""

from __future__ import annotations

import dataclasses
import io
import itertools
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from embedx.data.decoding.images import ImageDecoder, decode
from embedx.data.reading.files import RejectedInputError
from embedx.recipe import PixelOptions, Preprocessing, parse_pixels

tifffile = pytest.importorskip("tifffile")
RANDOM = np.random.default_rng(7)
FULL = RANDOM.integers(0, 2**16, (24, 36), dtype=np.uint16)
COLOR = RANDOM.integers(0, 2**16, (24, 36, 4), dtype=np.uint16)


def tiff(values: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def png(values: Any, *chunks: tuple[bytes, bytes], interlaced: bool = False) -> bytes:
    """A PNG of 16 bits per channel, by hand as Pillow writes gray alone."""
    values = values if values.ndim == 3 else values[..., None]
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, interlaced)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [values[y::dy, x::dx] for y, x, dy, dx in passes] if interlaced else [values]
    rows = b""
    for number, row in enumerate(itertools.chain.from_iterable(part for part in parts if part.size)):
        packed = np.frombuffer(row.astype(">u2").tobytes(), np.uint8)
        left = np.concatenate([np.zeros(2 * channels, np.uint8), packed[: -2 * channels]])
        rows += b"\1" + (packed - left).tobytes() if number % 2 else b"\0" + packed.tobytes()  # two of the filters
    every = ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in every
    )


def read(data: bytes, pixels: str = "") -> np.ndarray:
    return decode(data, options=parse_pixels(pixels)).permute(1, 2, 0).numpy()


def gray(values: Any) -> np.ndarray:
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=-1)


def reason(data: bytes, pixels: str = "") -> str:
    with pytest.raises(RejectedInputError) as caught:
        read(data, pixels)
    return str(caught.value)


STORED: tuple[dict[str, Any], ...] = (
    {},
    {"compression": "zlib"},
    {"compression": "lzw"},
    {"tile": (16, 16)},
    {"rowsperstrip": 5},
)


@pytest.mark.parametrize("options", STORED)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
def test_white_is_zero_is_the_same_ramp(kind: str, order: str, options: dict[str, Any]) -> None:
    top = {"u1": 255, "u2": 65535, "f4": 1.0}[kind]
    ramp = np.tile(np.linspace(0, top, 32), (32, 1)).astype(order + kind)
    setting = "range=0:1" if kind == "f4" else ""
    black, white = (
        read(tiff(values, photometric=photometric, byteorder=order, **options), setting)
        for photometric, values in (("minisblack", ramp), ("miniswhite", top - ramp))
    )
    assert np.array_equal(black, white) and (np.diff(black[0, :, 0].astype(int)) >= 0).all()
    assert black[0, 0, 0] == 0 and black[0, -1, 0] == 255


def test_white_is_zero_of_a_file_by_hand() -> None:
    ramps: list[Any] = []
    for photometric in (0, 1):
        values = np.tile(np.linspace(0, 65535, 32).astype("<u2"), (32, 1))
        data = (65535 - values if photometric == 0 else values).astype("<u2").tobytes()
        tags = [(256, 32), (257, 32), (258, 16), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 32)]
        entries = b"".join(struct.pack("<HHII", tag, 4 if tag == 273 else 3, 1, value) for tag, value in tags)
        entries += struct.pack("<HHII", 279, 4, 1, len(data))
        ramps.append(
            read(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", 9) + entries + bytes(4))
        )
    assert np.array_equal(ramps[0], ramps[1]) and np.array_equal(
        ramps[0][0, :, 0], np.linspace(0, 65535, 32).astype(int) >> 8
    )


def files(values: Any) -> dict[str, bytes]:
    """The forms in which a picture of 16 bits comes; by the number of its channels."""
    count = 1 if values.ndim == 2 else values.shape[-1]
    named = {1: "minisblack", 2: "minisblack", 3: "rgb", 4: "rgb"}[count]
    extra = {"extrasamples": ["unassalpha"]} if count in (2, 4) else {}
    every = {"png": png(values), "png, interlaced": png(values, interlaced=True)}
    for compression, order in itertools.product((None, "zlib", "lzw"), "<>"):
        every[f"tiff {compression} {order}"] = tiff(
            values.astype(order + "u2"), photometric=named, compression=compression, byteorder=order, **extra
        )
    if count > 1:
        planes = np.moveaxis(values, -1, 0).copy()
        every["tiff, planes"] = tiff(planes, photometric=named, planarconfig="separate", **extra)
    if count in (1, 3):
        header = b"P%d %d %d 65535\n" % (5 if count == 1 else 6, values.shape[1], values.shape[0])
        every["pnm"] = header + values.astype(">u2").tobytes()
    return every


SHAPES = {"gray": FULL, "gray and alpha": COLOR[..., :2], "rgb": COLOR[..., :3], "rgba": COLOR}


@pytest.mark.parametrize("shape", SHAPES)
def test_of_16_bits_that_are_used_the_high_byte_is_kept(shape: str) -> None:
    values = SHAPES[shape]
    colors = gray(values >> 8) if values.ndim == 2 else values[..., : 1 if values.shape[-1] == 2 else 3] >> 8
    for name, data in files(values).items():
        off = np.abs(read(data).astype(int) - colors)
        assert off.max() <= (name == "pnm" and shape == "rgb"), name  # which Pillow rounds


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_camera_s_bits_are_read_by_the_setting_and_in_doubt_rejected(shape: str, bits: int) -> None:
    values = SHAPES[shape] >> (16 - bits)
    if shape in ("gray and alpha", "rgba"):
        values = np.dstack([values[..., :-1], np.full(values.shape[:2], 65535 >> (16 - bits), np.uint16)])
    colors = gray(values >> bits - 8) if values.ndim == 2 else values[..., : 1 if values.shape[-1] == 2 else 3]
    colors = colors if values.ndim == 2 else colors >> bits - 8
    largest = (values if values.ndim == 2 else values[..., : 1 if values.shape[-1] == 2 else 3]).max()
    for name, data in files(values).items():
        assert np.array_equal(read(data, f"bits={bits}"), np.broadcast_to(colors, (24, 36, 3))), name
        told = reason(data)
        assert (
            f"of uint16 with values up to {largest:g}" in told and f"--pixels bits={bits} or --pixels bits=16" in told
        )
        assert read(data, "bits=16").max() <= 64, name  # 64 where Pillow rounds
        if name != "png" and not name.startswith("tiff, p"):
            continue
        few = reason(data, "bits=8")
        assert few.endswith(f"which are more than 8 bits; give --pixels bits={bits} or more"), name


def test_black_is_black_whatever_the_bits() -> None:
    for name, data in files(np.zeros((24, 36, 3), np.uint16)).items():
        assert not read(data).any(), name


def test_bits_that_the_file_states_need_no_setting() -> None:
    values = FULL >> 4
    bits = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(24, 36, 2), axis=-1)[..., 4:]
    packed = np.packbits(bits.reshape(24, -1), axis=-1)
    tags = [(256, 36), (257, 24), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 24), (279, packed.size)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<I", 8 + packed.size) + packed.tobytes() + struct.pack("<H", 9) + entries + bytes(4)
    assert np.array_equal(read(data), gray(values >> 4))
    stated = tiff(values, photometric="minisblack", extratags=[(281, 3, 1, 4095, True)])
    assert np.array_equal(read(stated), gray(values >> 4))
    assert np.array_equal(read(tiff(values, extratags=[(281, 3, 1, 65535, True)])), gray(values >> 8))
    assert "bits=12" in reason(tiff(values, extratags=[(281, 3, 1, int(values.max()) - 5, True)]))
    pgm = b"P5 36 24 4095\n" + values.astype(">u2").tobytes()
    assert np.abs(read(pgm).astype(int) - gray(values >> 4)).max() <= 1


def test_a_jpeg_2000_states_its_bits() -> None:
    file = io.BytesIO()
    Image.fromarray(FULL >> 6).save(file, "JPEG2000")
    assert "bits=10 or --pixels bits=16" in reason(file.getvalue())
    assert np.array_equal(read(file.getvalue(), "bits=10"), gray(FULL >> 8))


@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "u4", "f2", "f4", "f8"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("order", "<>")
def test_other_types_are_read_by_their_range_or_rejected(kind: str, channels: int, order: str) -> None:
    low, high = (0, 1) if kind[0] == "f" else (-100, 120) if kind[0] == "i" else (1000, 100_000)
    values = (RANDOM.random((24, 36, channels)) * (high - low) + low).astype(order + kind)
    data = tiff(
        values[..., 0] if channels == 1 else values, photometric="rgb" if channels == 3 else None, byteorder=order
    )
    expected = np.rint((values.astype(float) - low).clip(0, high - low) / (high - low) * 255)
    assert np.abs(read(data, f"range={low}:{high}") - expected).max() == 0
    middle = (low + high) / 2
    clipped = np.rint(((values.astype(float) - middle) / (high - middle)).clip(0, 1) * 255)
    assert np.abs(read(data, f"range={middle}:{high}") - clipped).max() == 0
    told = reason(data)
    assert f"{channels} channel{'s' * (channels > 1)} of {np.dtype(kind)} with values " in told
    assert f"{values.max():g}" in told and told.endswith("give them by --pixels, such as range=0:1")


def test_values_that_are_no_numbers_are_a_reason_of_their_own() -> None:
    for value in (np.nan, np.inf, -np.inf):
        values = np.zeros((24, 36), np.float32)
        values[3, 4] = value
        for setting in ("", "range=0:1"):
            assert "some are NaN or infinite" in reason(tiff(values), setting)


MANY: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "two of 8": (RANDOM.integers(0, 256, (24, 36, 2), dtype=np.uint8), {"extrasamples": [0]}),
    "two of 16": (COLOR[..., :2], {"extrasamples": [0]}),
    "two of 16, packed": (COLOR[..., :2], {"extrasamples": [0], "compression": "zlib", "predictor": True}),
    "three without colours": (COLOR[..., :3], {"extrasamples": [0, 0]}),
    "four of 8": ((COLOR >> 8).astype(np.uint8), {"photometric": "rgb", "extrasamples": [0]}),
    "four of 16": (COLOR, {"photometric": "rgb", "extrasamples": [0]}),
    "four of 16, lzw": (COLOR, {"photometric": "rgb", "extrasamples": [0], "compression": "lzw"}),
    "five": (np.dstack([COLOR, FULL]), {"photometric": "rgb", "extrasamples": [2, 0]}),
    "thirteen": (RANDOM.integers(0, 2**16, (24, 36, 13), dtype=np.uint16), {"photometric": "minisblack"}),
}


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("name", MANY)
def test_channels_without_a_meaning_are_named_by_the_setting(name: str, planes: bool) -> None:
    values, options = MANY[name]
    options = {"photometric": "minisblack", **options, "planarconfig": "separate" if planes else "contig"}
    data = tiff(np.moveaxis(values, -1, 0).copy() if planes else values, **options)
    count = values.shape[-1]
    told = reason(data)
    assert f"{count} channels of {values.dtype} with values up to {values.max():g}" in told
    assert f"--pixels channels={'0:1:2' if count > 2 else '0'}" in told
    high = values if values.dtype == np.uint8 else values >> 8
    for channels in ([0], [1], [count - 1], [1, 0, 1], [count - 1, 0, 1]):
        text = ":".join(map(str, channels))
        expected = np.broadcast_to(high[..., channels], (24, 36, 3))
        assert np.array_equal(read(data, f"channels={text}"), expected), channels
    assert f"there is none of number {count}" in reason(data, f"channels={count}")


def saved(array: Any, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(file, format, **options)
    return file.getvalue()


RGBA = RANDOM.integers(0, 256, (48, 64, 4), dtype=np.uint8)


CIELAB, FILTERS, PALETTE = 8, 32803, 3


def with_photometric(data: bytes, value: int) -> bytes:
    """The same TIFF, whose colours are said to be others."""
    entry = struct.pack("<HHI", 262, 3, 1)
    assert data.count(entry) == 1
    at = data.index(entry) + len(entry)
    return data[:at] + struct.pack("<H", value) + data[at + 2 :]


@pytest.mark.parametrize(
    ("values", "options", "photometric", "told"),
    [
        (COLOR[..., :3], {"photometric": "rgb"}, CIELAB, "3 channels of uint16 whose colours are CIELAB"),
        ((COLOR >> 8).astype(np.uint8), {"photometric": "rgb", "extrasamples": [2]}, CIELAB, "colours are CIELAB"),
        (FULL, {}, FILTERS, "a TIFF of 1 channel of uint16 whose colours are those of a sensor's mosaic"),
    ],
)
def test_other_colours_are_never_taken_for_gray_or_rgb(
    values: np.ndarray, options: dict[str, Any], photometric: int, told: str
) -> None:
    for setting in ("", "bits=12", "channels=0"):
        assert told in reason(with_photometric(tiff(values, **options), photometric), setting)


@pytest.mark.parametrize(("bits", "compression"), [(16, None), (16, "zlib"), (8, "png"), (8, "jpegxl"), (8, None)])
def test_numbers_of_a_palette_are_its_colours(bits: int, compression: str | None) -> None:
    if compression in ("png", "jpegxl"):
        pytest.importorskip("imagecodecs")
    values = FULL if bits == 16 else (FULL >> 8).astype(np.uint8)
    palette = RANDOM.integers(0, 2**16, (3, 2**bits), dtype=np.uint16)
    data = tiff(values, photometric="palette", colormap=palette, compression=compression)
    assert np.array_equal(read(data), np.moveaxis(palette[:, values] >> 8, 0, -1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [12, 16])
def test_one_transparent_colour_of_16_bits_is_composited_too(channels: int, bits: int) -> None:
    values = COLOR[..., :channels] >> (16 - bits)
    clear = (b"tRNS", values[3, 4].astype(">u2").tobytes())
    high = np.broadcast_to(values >> (bits - 8), (24, 36, 3)).copy()
    assert np.array_equal(read(png(values, clear), f"bits={bits}"), high)
    high[(values == values[3, 4]).all(-1)] = 255
    assert np.array_equal(read(png(values, clear), f"bits={bits},background=white"), high)


def test_a_long_comment_hides_no_depth() -> None:
    header = b"P6\n#" + b"x" * 2000 + b"\n36 24\n65535\n"
    assert "--pixels bits=12" in reason(header + (COLOR[..., :3] >> 4).astype(">u2").tobytes())


def test_channels_are_picked_of_ordinary_pictures_too() -> None:
    for data in (saved(RGBA), saved(RGBA, "WEBP", lossless=True, exact=True), saved(RGBA, "TIFF")):
        assert np.array_equal(read(data, "channels=2:1:0"), RGBA[..., 2::-1])
        assert np.array_equal(read(data, "channels=3"), gray(RGBA[..., 3]))
    jpeg = saved(RGBA[..., :3], "JPEG")
    assert np.array_equal(read(jpeg, "channels=1"), gray(np.array(Image.open(io.BytesIO(jpeg)))[..., 1]))
    assert "1 channel of uint8" in reason(saved(RGBA[..., 0]), "channels=0:1:2")
    assert "3 channels of uint8" in reason(jpeg, "channels=3")


BACKGROUNDS = {
    "rgba": saved(RGBA),
    "la": saved(Image.fromarray(RGBA).convert("LA")),
    "palette": saved(Image.fromarray(RGBA[..., :3]).quantize(16), transparency=bytes(range(0, 256, 16))),
    "one colour of a palette": saved(Image.fromarray(RGBA[..., :3]).quantize(16), transparency=3),
    "one colour": saved(np.tile(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8), (8, 8, 1)), transparency=(4, 5, 6)),
    "gif": saved(Image.fromarray(RGBA[..., :3]).quantize(16), "GIF", transparency=3),
    "webp": saved(RGBA, "WEBP", lossless=True),
    "tiff": saved(RGBA, "TIFF"),
    "without alpha": saved(RGBA[..., :3]),
    "jpeg": saved(RGBA[..., :3], "JPEG"),
}


@pytest.mark.parametrize("color", ["white", "black", "#10f0a0"])
@pytest.mark.parametrize("name", BACKGROUNDS)
def test_alpha_is_composited_where_that_is_asked(name: str, color: str) -> None:
    data = BACKGROUNDS[name]
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    expected = np.array(Image.alpha_composite(Image.new("RGBA", image.size, color), image).convert("RGB"))
    assert np.abs(read(data, f"background={color}").astype(int) - expected).max() <= (2 if name == "jpeg" else 0)


@pytest.mark.parametrize("alpha_bits", [12, 16])
@pytest.mark.parametrize("channels", [[0, 3], [0, 1, 2, 3]])
def test_alpha_of_a_camera_has_the_colours_bits_or_16(channels: list[int], alpha_bits: int) -> None:
    shifts = np.array([4] * (len(channels) - 1) + [alpha_bits - 8])
    deep = RGBA[..., channels].astype(np.uint16) << shifts.astype(np.uint16)
    image = Image.fromarray(RGBA[..., channels]).convert("RGBA")
    expected = np.array(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))
    assert np.array_equal(read(png(deep), "bits=12,background=white"), expected)


def profile(name: str) -> bytes:
    """A profile that is not sRGB: XYZ of it, or sRGB's with other colours in place of red and blue."""
    own = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    if name == "none":
        return b"none"
    tags = {bytes(own[at : at + 4]): at for at in range(132, 132 + 12 * int.from_bytes(own[128:132]), 12)}
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    own[red + 4 : red + 12], own[blue + 4 : blue + 12] = own[blue + 4 : blue + 12], own[red + 4 : red + 12]
    return bytes(own)


@pytest.mark.parametrize("size", [6, 40])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_colours_are_converted_from_their_profile_where_that_is_asked(format: str, size: int) -> None:
    smooth = np.dstack(np.broadcast_arrays(*np.ogrid[0:200:48j, 0:240:64j], 90)).astype(np.uint8)
    every: dict[str, dict[str, Any]] = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    options = every.get(format, {})
    data = saved(smooth, format, icc_profile=profile("swapped"), **options)
    steps = Preprocessing(size, size, "bilinear", (0.5,) * 3, (0.5,) * 3)
    asked = dataclasses.replace(steps, pixels=PixelOptions(color="srgb"))
    rows = []
    for decoder in (ImageDecoder(asked), ImageDecoder(steps)):
        rows.append(decoder.empty(1)[0])
        decoder.decode_into(rows[-1], data)
    assert (rows[0].int() - rows[1].flip(0).int()).abs().max() <= 4, "red and blue have changed places"
    none = saved(smooth, format, icc_profile=profile("none"), **options)
    assert np.array_equal(read(none, "color=srgb"), read(none))


def test_a_profile_of_inks_is_used_too() -> None:
    image = Image.fromarray(RGBA[..., :3]).convert("CMYK")
    data = saved(image, "TIFF", icc_profile=profile("swapped"))  # of other colours than the picture: passed over
    assert np.array_equal(read(data, "color=srgb"), read(data))
