"""A file system whose server stands still, as one behind a network does that went away: `python dead_mount.py FOLDER`.

It has one file, FOLDER/file.jpg, which can be looked up and opened; a read of it never ends, and what reads can't be
killed. The kernel asks by the FUSE protocol (linux/fuse.h, version 7.12). When this process ends, all reads fail.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import sys

LOOKUP, FORGET, GETATTR, OPEN, READ, INIT, INTERRUPT, BATCH_FORGET = 1, 2, 3, 14, 15, 26, 36, 42
UNANSWERED = {FORGET, READ, INTERRUPT, BATCH_FORGET}
ENOENT, ENOSYS = 2, 38
ROOT, FILE = 1, 2
NAME = "file.jpg"


def main(folder: str) -> None:
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"dead", os.fsencode(folder), b"fuse", 0, options.encode()) != 0:
        sys.exit(f"can't be mounted: {os.strerror(ctypes.get_errno())}")
    print("mounted", flush=True)
    while True:
        request = os.read(device, 1 << 20)
        _, operation, number, node = struct.unpack_from("<IIQQ", request)
        if operation not in UNANSWERED:
            error, reply = answer(operation, node, request[40:])
            os.write(device, struct.pack("<IiQ", 16 + len(reply), -error, number) + reply)


def answer(operation: int, node: int, arguments: bytes) -> tuple[int, bytes]:
    """The error number, and what the kernel expects where it is 0."""
    if operation == INIT:
        return 0, struct.pack("<IIIIHHI", 7, 12, 0, 0, 0, 0, 4096)
    if operation == LOOKUP:
        known = arguments.rstrip(b"\0") == NAME.encode()
        return (0, struct.pack("<QQQQII", FILE, 0, 60, 60, 0, 0) + attributes(FILE)) if known else (ENOENT, b"")
    if operation == GETATTR:
        return 0, struct.pack("<QII", 60, 0, 0) + attributes(node)
    return (0, struct.pack("<QII", 0, 0, 0)) if operation == OPEN else (ENOSYS, b"")


def attributes(node: int) -> bytes:
    mode = stat.S_IFREG | 0o644 if node == FILE else stat.S_IFDIR | 0o755
    return struct.pack("<6Q10I", node, 4096, 8, 1, 1, 1, 0, 0, 0, mode, 1, os.getuid(), os.getgid(), 0, 4096, 0)


if __name__ == "__main__":
    main(sys.argv[1])
