"""Opens images by Pillow and its plugins, and says by name why an image can't be read."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import re
import struct
import threading
import warnings
from typing import NamedTuple

from PIL import Image, PngImagePlugin, UnidentifiedImageError, features

from embedx.data.decoding.beside import JPEG_MAGIC, LARGEST_TEXT
from embedx.data.decoding.extra import INSTALL
from embedx.data.reading.files import RejectedInputError

Image.init()
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)  # what it logs, it also raises
_FORMATS: list[str] = [
    name
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA")
    if name in Image.OPEN
]
"""The formats that are read. Pillow knows more; one of them, EPS, would run the file in an interpreter."""


class _Plugin(NamedTuple):
    """A plugin of Pillow, which is imported at the first image that needs it."""

    format: str
    """The name in Pillow's terms of the format that it reads."""
    name: str
    """The name of the format for people."""
    signature: re.Pattern[bytes]
    """The beginning of a file of that format."""
    module: str
    register: str
    """The function of the module that registers it; empty if importing it does."""
    advice: str


_PLUGINS = (
    _Plugin(
        "AVIF",
        "AVIF",
        re.compile(rb".{4}ftyp(?:avif|avis|....(?:....)*?avi[fs])", re.DOTALL),
        "pillow_avif",
        "",
        "this Pillow is built without AVIF; install Pillow's own wheel in its place",
    ),
    _Plugin(
        "HEIF",
        "HEIC",
        re.compile(rb".{4}ftyp(?:hei[cxms]|hev[cxms]|mif[12]|msf1)", re.DOTALL),
        "pillow_heif",
        "register_heif_opener",
        f"it needs the package pillow-heif; {INSTALL}",
    ),
    _Plugin(
        "JXL",
        "JPEG XL",
        re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", re.DOTALL),
        "pillow_jxl",
        "",
        f"it needs the package pillow-jxl-plugin; {INSTALL}",
    ),
)


class _OwnLimits:
    """Pillow's limits and warnings, which apply to the whole process, lifted while any thread is within.

    The first thread that enters lifts them, and the last that leaves restores them. With a copy in every thread, one of
    them would save what another had lifted, and leave the process without limits for good.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within = 0
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._within:
                self._lift()
            self._within += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._within -= 1
            if not self._within:
                self._undo.close()

    def _lift(self) -> None:
        for place, name, limit in (
            (Image, "MAX_IMAGE_PIXELS", None),
            (PngImagePlugin, "MAX_TEXT_CHUNK", LARGEST_TEXT),
        ):
            self._undo.callback(setattr, place, name, getattr(place, name))
            setattr(place, name, limit)
        self._undo.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")


_OWN_LIMITS = _OwnLimits()


def only_own_limits() -> contextlib.AbstractContextManager[None]:
    """Silences Pillow's warnings and lifts its limits within the context; both apply to the whole process.

    The warnings concern files that Pillow then decodes, or refuses by an error. Several threads may be within at once.
    """
    return _OWN_LIMITS


def open_image(data: bytes) -> Image.Image:
    """Opens an image of one of the formats that are read; its pixels are not decoded yet.

    Raises:
        UnidentifiedImageError: If it is of none of them, or its header is damaged.
        RejectedInputError: If it needs a plugin that is not installed.
    """
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        for plugin in _PLUGINS:
            if plugin.signature.match(data[:64]) and plugin.format not in _loaded:
                _load(plugin)
                return Image.open(io.BytesIO(data), formats=[plugin.format])
        raise


_loaded = {"AVIF"} if features.check("avif") else set()


def _load(plugin: _Plugin) -> None:
    """Registers a plugin in this process, which need not be the first that decodes."""
    try:
        module = importlib.import_module(plugin.module)
    except ImportError as error:
        raise RejectedInputError(f"an image in {plugin.name}: {plugin.advice}") from error
    if plugin.register:
        getattr(module, plugin.register)()
    _loaded.add(plugin.format)
    if plugin.format not in _FORMATS:
        _FORMATS.append(plugin.format)


def reason_of(data: bytes, error: Exception) -> str:
    """Says why an image can't be read that Pillow raised an error for."""
    if (reason := _jpeg_reason(data) if data.startswith(JPEG_MAGIC) else None) is not None:
        return reason
    if data.startswith(b"GIF8") and isinstance(error, EOFError | UnidentifiedImageError) and len(data) > 13:
        return "a GIF without a picture in it"
    if isinstance(error, UnidentifiedImageError):
        return f"not an image of a known format (it begins with {data[:8]!r})"
    return f"can't be decoded: {error}"


def _jpeg_reason(data: bytes) -> str | None:
    """Names the kind of a JPEG that no decoder takes; None for the usual kinds."""
    at = 2
    with contextlib.suppress(IndexError, struct.error):
        while data[at] == 0xFF:
            marker = data[at + 1]
            if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
                return _frame_reason(marker, bits=data[at + 4])
            at += 1 if marker == 0xFF else 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


def _frame_reason(marker: int, bits: int) -> str | None:
    kinds = {0xC3: "a lossless JPEG", 0xF7: "a JPEG-LS", 0xCB: "a lossless JPEG"}
    if marker in kinds:
        return f"{kinds[marker]}, which is not read; convert it to PNG or TIFF"
    if bits != 8:
        return f"a JPEG of {bits} bits per channel, and only those of 8 are read; convert it to PNG or TIFF"
    if marker in (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF):
        return "a hierarchical JPEG, which is not read; convert it to PNG or TIFF"
    return None
