"""Tells errors that may pass, of the machine or the network, from verdicts on what was asked for."""

from __future__ import annotations

import errno

_VERDICTS = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ}
    | {errno.EACCES, errno.EPERM, errno.EFBIG, errno.EOVERFLOW}
)
"""The error numbers that speak of a path, its permissions or its size: the same again until somebody changes that."""


class LaterError(OSError):
    """An error that may pass, but not within seconds: further attempts were made already, or are of no use."""


def passing_error(error: BaseException | None) -> OSError | None:
    """Returns the error behind another one, or itself, that may pass; None if all is a verdict.

    An error without a number is a verdict of a decoder, as Pillow raises it, unless its type names the network.
    """
    while error is not None:
        if isinstance(error, LaterError | TimeoutError | ConnectionError):
            return error
        if isinstance(error, OSError) and isinstance(error.errno, int) and error.errno not in _VERDICTS:
            return error
        error = error.__cause__
    return None


def is_absence(error: BaseException | None) -> bool:
    """Tells whether the error behind another one, or itself, says that there is no such file."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    return error is not None and error.errno in (errno.ENOENT, errno.ENOTDIR)
