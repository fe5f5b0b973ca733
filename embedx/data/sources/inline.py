"""Images that stand in a column as bytes or as base64, also in `data:` URLs."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_DATA = re.compile(r"data:[^,]*?(;base64)?,", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]{32,}={0,2}\s*")
_NO_TEXT = re.compile(rb"[\x00-\x08]")
"""The bytes that every image has, and no path."""
_BEGINNINGS = re.compile(
    rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF|II[*+]\0|MM\0[*+]|BM|\x00\x00\x00|\xff\x0a|\x93NUMPY", re.DOTALL
)
"""The first bytes of images and arrays, by which base64 is told from a path."""
_LOOKED_AT = 64


def is_inline(texts: pa.ChunkedArray) -> bool:
    """Tells whether a column of texts holds images: a `data:` URL, or a first value that is base64 of one."""
    if pc.any(pc.starts_with(texts, "data:")).as_py():
        return True
    first = next((text.as_py() for text in texts if text.is_valid), "")
    return _BASE64.fullmatch(first) is not None and _BEGINNINGS.match(_from_base64(first[:_LOOKED_AT])) is not None


def image_of(value: Any) -> dict[str, Any]:
    """Returns the `bytes` of an image, or the `path` of one, from a row's value.

    Raises:
        ValueError: If it is a `data:` URL that can't be decoded.
    """
    if isinstance(value, bytes):
        return {"bytes": value}
    if not isinstance(value, str):
        return value or {}
    if url := _DATA.match(value):
        if not url[1]:
            raise ValueError(f"the {value[: url.end()]!r} URL is not base64")
        return {"bytes": _from_base64(value[url.end() :])}
    return {"bytes": _from_base64(value)} if _BASE64.fullmatch(value) else {"path": value}


def _from_base64(text: str) -> bytes:
    """Decodes base64 of either alphabet, with or without padding."""
    plain = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    plain = plain[: len(plain) // 4 * 4 + (len(plain) % 4 if len(plain) % 4 > 1 else 0)]
    return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)


def holds_bytes(kind: pa.DataType) -> bool:
    """Tells whether a type is a struct with `bytes`, as in Hugging Face's image datasets."""
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and is_bytes(kind.field("bytes").type)


def is_bytes(kind: pa.DataType) -> bool:
    """Tells whether a type is one of bytes."""
    types = pa.types
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def holds_images(chunks: Iterable[pa.Array]) -> bool:
    """Tells whether a column of bytes holds images, by the first value; paths can be bytes too."""
    first = next((value.as_py() for chunk in chunks for value in chunk if value.is_valid), b"")
    return _NO_TEXT.search(first) is not None
