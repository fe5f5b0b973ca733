"""The scans of a JPEG, each of which goes over the whole picture: a small file can have thousands, and take minutes."""

from __future__ import annotations

import contextlib
import re
import struct

MOST_SCANS = 100
"""The scans above which a JPEG is rejected; encoders make about 10 of a progressive one."""
_SCAN = 0xDA
_START_OF_SCAN = b"\xff\xda"
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""A marker that ends the data of a scan."""


def count_scans(data: bytes) -> int:
    """Counts the scans of a JPEG's picture: at most so many as its bytes have markers, exact where those are many."""
    markers = data.count(_START_OF_SCAN)
    if markers <= MOST_SCANS:
        return markers
    scans, at = 0, 2
    with contextlib.suppress(IndexError, struct.error):
        while data[at] == 0xFF and (marker := data[at + 1]) != 0xD9:
            if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:
                at += 1 if marker == 0xFF else 2
                continue
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
            if marker == _SCAN:
                scans += 1
                after = _AFTER_SCAN.search(data, at)
                at = after.start() if after else len(data)
    return scans
