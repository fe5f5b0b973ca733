"""Text of any Unicode encoding, as UTF-8."""

from __future__ import annotations

import codecs

_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""The byte-order marks; that of UTF-16 begins that of UTF-32, and so comes later."""


def without_mark(content: bytes) -> bytes:
    """Returns text that begins with a byte-order mark as UTF-8, and any other as it is.

    Raises:
        UnicodeDecodeError: If it is not in the encoding that the mark says.
    """
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            return content.removeprefix(mark) if encoding == "utf-8" else content.decode(encoding).encode()
    return content


def to_utf8(content: bytes) -> bytes:
    """Returns text as UTF-8; UTF-16 without a mark is known by the zeros of its ASCII letters.

    Raises:
        UnicodeDecodeError: If it is in another encoding.
    """
    zeros = [byte == 0 for byte in content[:4]]
    if zeros in ([False, True, False, True], [True, False, True, False]):
        return content.decode("utf-16-be" if zeros[0] else "utf-16-le").encode()
    plain = without_mark(content)
    plain.decode()
    return plain


def fault_of(content: bytes, error: UnicodeDecodeError) -> str:
    """Returns what is wrong with text that `to_utf8` refuses, and the way out."""
    line = content.count(b"\n", 0, error.start) + 1
    begin = content.rfind(b"\n", 0, error.start) + 1
    word = content[max(begin, error.start - 12) : error.start + 12].split(b"\n")[0].strip()
    try:
        other = f", but reads {word.decode('cp1252')!r} as Windows-1252"
    except UnicodeDecodeError:
        other = ""
    return f"line {line} is not UTF-8 text{other}; convert the table to UTF-8"
