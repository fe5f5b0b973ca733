"""Reading the bytes of inputs."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO


class RejectedInputError(Exception):
    """This input gives no embedding; the message is the reason, fit for the index table."""


class FileReader:
    """Reads whole files, or parts of them."""

    def read(self, path: bytes, offset: int | None = None, size: int | None = None) -> bytes:
        """Reads a regular file: the `size` bytes from `offset` on, or all of it if that is None.

        Raises:
            RejectedInputError: If it can't be read, or is something else (a FIFO would never end).
        """
        try:
            # Not to block: opening a FIFO that nobody writes to would wait for ever.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise RejectedInputError("not a regular file")
                if offset is None:
                    return file.read()
                data = os.pread(descriptor, size or 0, offset)
        except OSError as error:
            raise RejectedInputError(f"can't be read: {error.strerror}") from error
        if len(data) != size:
            raise RejectedInputError(f"the file ends after {len(data)} of the input's {size} bytes")
        return data


def open_file(location: str) -> BinaryIO:
    """Opens a file of inputs, such as a table or an archive, to be read at any place.

    Raises:
        OSError: If it can't be opened.
    """
    return open(location, "rb")
