"""The scans of a JPEG, each of which goes over the whole picture: a small file can have thousands, and take minutes."""

from __future__ import annotations

import contextlib
import re
import struct

MOST_SCANS = 100
"""The scans above which a JPEG is rejected; encoders make about 10 of a progressive one."""
_START_OF_SCAN = b"\xff\xda"
_END = b"\xff\xd9"
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""A marker that a segment follows; in a scan's data, and where bytes that belong to nothing are skipped, it is next."""


def count_scans(data: bytes) -> int:
    """Counts the scans of a JPEG's picture: at most so many as its bytes have markers, exact where those are many."""
    markers = data.count(_START_OF_SCAN)
    if markers <= MOST_SCANS:
        return markers
    scans, at = 0, 2
    with contextlib.suppress(struct.error):
        while (found := _MARKER.search(data, at)) and found[0] != _END:
            at = found.end() + struct.unpack_from(">H", data, found.end())[0]
            scans += found[0] == _START_OF_SCAN
    return scans
