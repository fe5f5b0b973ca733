"""Leaves out what stands beside a picture in its file, so that damage to it does not reject the picture.

EXIF, XMP, texts, colour profiles, thumbnails and unknown parts go, except for those that the picture's orientation and
colours need and that are whole.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

from embedx.data.decoding import tiff

JPEG_MAGIC = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"tRNS", b"eXIf", b"iCCP")
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PNG_STATING = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
"""The beginnings of the texts that can state an orientation."""
_TRANSPARENT_BYTES = {0: 2, 2: 6}
"""The bytes of a tRNS by the type of colour; with a palette it may have any number."""
LARGEST_TEXT = 16 * 1024**2
"""The bytes above which a PNG's colour profile or text, once unpacked, is left unread; Pillow's own limit is 1 MiB."""
_JPEG_KEPT = {0xE1: (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"), 0xE2: (b"ICC_PROFILE\0",), 0xEE: (b"Adobe",)}
_START_OF_SCAN = 0xDA
_JPEG_STANDALONE = {0x01, *range(0xD0, 0xD9)}
_WEBP_PICTURE = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF")
_WEBP_FLAGS = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}
"""The flags in a WebP's header that announce other chunks."""
_TIFF_KEPT = {*range(254, 260), 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, *range(321, 326)}
_TIFF_KEPT |= {332, 338, 339, 347, *range(512, 522), 529, 530, 531, 532}
"""The tags of a TIFF that say how its picture is stored."""


def picture_alone(data: bytes) -> bytes | None:
    """Returns the file without what stands beside its picture; None for formats in which that is not known."""
    for magic, leave_out in _FORMATS:
        if data.startswith(magic):
            try:
                return leave_out(data)
            except (struct.error, IndexError):  # the file's own structure is damaged
                return None
    return None


def _png(data: bytes) -> bytes:
    kept, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, chunk = data[at + 4 : at + 8], data[at : at + 12 + length]
        if len(chunk) < 12 + length and _is_ancillary(kind):
            break
        is_whole = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])
        is_kept = kind in _PNG_KEPT or (kind in _PNG_TEXTS and chunk[8:].startswith(_PNG_STATING))
        if not _is_ancillary(kind) or (is_kept and is_whole and _is_readable(chunk, color_type=data[25])):
            kept.append(chunk)
        at += 12 + length
    if b"IDAT" in {chunk[4:8] for chunk in kept} and kept[-1][4:8] != b"IEND" and at <= len(data):
        kept.append(struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND")))
    return b"".join(kept)


def _is_ancillary(kind: bytes) -> bool:
    return bool(kind[0] & 0x20)


def _is_readable(chunk: bytes, color_type: int) -> bool:
    """Tells whether a whole chunk is one that Pillow reads."""
    kind, content = chunk[4:8], chunk[8:-4]
    if kind == b"tRNS":
        return len(content) >= _TRANSPARENT_BYTES.get(color_type, 1)
    if kind == b"iCCP" or kind == b"zTXt":
        content = content.partition(b"\0")[2]
        return content[:1] == b"\0" and _is_unpacked(content[1:])
    if kind == b"iTXt":
        _, _, content = content.partition(b"\0")
        packed = content[2:].split(b"\0", 2)[-1]
        return content[:1] == b"\0" or _is_unpacked(packed)
    return True


def _is_unpacked(packed: bytes) -> bool:
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(packed, LARGEST_TEXT)
    except zlib.error:
        return False
    return unpacker.eof


def _jpeg(data: bytes) -> bytes:
    kept, at = [data[:2]], 2
    while data[at] == 0xFF and (marker := data[at + 1]) != _START_OF_SCAN:
        if marker in (0xFF, *_JPEG_STANDALONE):
            at += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        segment = data[at : at + 2 + length]
        is_beside = 0xE0 <= marker <= 0xEF or marker == 0xFE
        if not is_beside or (len(segment) > 18 and segment[4:].startswith(_JPEG_KEPT.get(marker, ()))):
            kept.append(segment)
        at += 2 + length
    return b"".join([*kept, data[at:]])


def _webp(data: bytes) -> bytes:
    chunks, at = [], 12
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        end = at + 8 + length + length % 2
        if data.startswith(_WEBP_PICTURE, at) or (end <= len(data) and data[at : at + 4] in _WEBP_FLAGS):
            chunks.append(bytearray(data[at:end]))
        at = end
    absent = sum(flag for kind, flag in _WEBP_FLAGS.items() if kind not in {bytes(chunk[:4]) for chunk in chunks})
    for chunk in chunks:
        if chunk.startswith(b"VP8X"):
            chunk[8] &= ~absent
    kept = b"".join(chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(kept)) + b"WEBP" + kept


def _gif(data: bytes) -> bytes:
    at = 13 + _table_bytes(data[10])
    kept = [data[:at]]
    while data[at] == 0x21:  # an extension
        end = _after_blocks(data, at + 2)
        if data[at + 1] == 0xF9:  # of the picture that follows: which colour is transparent
            kept.append(data[at:end])
        at = end
    if data[at] != 0x2C:
        return b"".join([*kept, data[at:]])
    end = _after_blocks(data, at + 11 + _table_bytes(data[at + 9]))
    return b"".join([*kept, data[at:end], b";"])


def _table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(data: bytes, at: int) -> int:
    while data[at]:
        at += 1 + data[at]
    return at + 1


def _tiff(data: bytes) -> bytes:
    """Leaves out the entries of the first directory in their place, and all further directories."""
    order = "<" if data.startswith(b"II") else ">"
    if struct.unpack_from(order + "H", data, 2)[0] == 43:
        start, count_form, entry_bytes, next_bytes = struct.unpack_from(order + "Q", data, 8)[0], "Q", 20, 8
    else:
        start, count_form, entry_bytes, next_bytes = struct.unpack_from(order + "I", data, 4)[0], "H", 12, 4
    (count,) = struct.unpack_from(order + count_form, data, start)
    first = start + struct.calcsize(count_form)
    entries = [data[at : at + entry_bytes] for at in range(first, first + count * entry_bytes, entry_bytes)]
    kept = [entry for entry in entries if struct.unpack_from(order + "H", entry)[0] in _TIFF_KEPT]
    directory = struct.pack(order + count_form, len(kept)) + b"".join(kept) + bytes(next_bytes)
    return data[:start] + directory + data[start + len(directory) :]


_FORMATS: tuple[tuple[bytes | tuple[bytes, ...], Callable[[bytes], bytes]], ...] = (
    (_PNG, _png),
    (JPEG_MAGIC, _jpeg),
    (b"RIFF", _webp),
    (b"GIF8", _gif),
    (tiff.MAGIC, _tiff),
)
