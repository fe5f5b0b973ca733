"""Judges the errors of fsspec's file systems: final ones, those that may pass, and their words without secrets."""

from __future__ import annotations

import errno
import lzma
import tarfile
import zipfile
import zlib

from embedx.credentials import credentials_hidden
from embedx.system.passing import LaterError, passing_error

_VERDICTS: tuple[type[Exception], ...] = (
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    NotImplementedError,
    ImportError,
)
_VERDICTS += (IsADirectoryError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError)
"""The errors of what is named or read, where a file system of fsspec's raises them."""
_EXPIRED = ("ExpiredToken", "RequestExpired", "RequestTimeTooSkewed")
"""The errors of S3, of status 400 or 403, about credentials that were good, or may be good again."""


def cause_of(error: BaseException) -> BaseException:
    """Returns the HTTP error behind fsspec's FileNotFoundError, which it raises for any status, or else the error."""
    cause = error.__cause__
    behind = isinstance(cause, TimeoutError) or type(cause).__module__.startswith("aiohttp")
    return cause if cause is not None and behind and isinstance(error, FileNotFoundError) else error


def final_error(error: BaseException) -> OSError | None:
    """Returns the error to raise for one that will not pass, or None for one that may."""
    status = status_of(error)
    if status == 401 or any(code in str(error) for code in _EXPIRED):  # who asks is at fault, and not what is asked for
        return LaterError(errno.EACCES, f"no access ({words_of(error)})")
    if status == 403 or isinstance(error, PermissionError):
        return PermissionError(errno.EACCES, f"no access ({words_of(error)})")
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return OSError(errno.EFBIG, error.strerror)
    if status in (404, 410) or (status is None and isinstance(error, FileNotFoundError)):
        return FileNotFoundError(errno.ENOENT, "not found")
    if type(error).__name__ == "NoCredentialsError":
        return LaterError(errno.EACCES, f"{error}; for public data set FSSPEC_S3='{{\"anon\": true}}'")
    if "Redirect" in type(error).__name__:  # aiohttp's, of a redirect in circles, or to another scheme
        return OSError(errno.EINVAL, f"a redirect that is not followed ({words_of(error)})")
    passing = (408, 409, 425, 429)
    if (status is not None and 300 <= status < 500 and status not in passing) or isinstance(error, _VERDICTS):
        return OSError(errno.EINVAL, words_of(error))
    return None


def status_of(error: BaseException | None) -> int | None:
    """Returns the HTTP status that caused an error, or None."""
    while error is not None:
        response = getattr(error, "response", None)  # of botocore, or of the hub
        status = response["ResponseMetadata"].get("HTTPStatusCode") if isinstance(response, dict) else None
        status = status or getattr(response, "status_code", None) or getattr(error, "status", None)  # of aiohttp
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None


def words_of(error: BaseException) -> str:
    """Returns an error's status and message, or else its text, without the credentials of URLs."""
    if isinstance(status := getattr(error, "status", None), int):
        return f"{status} {getattr(error, 'message', '')}".strip()
    text = getattr(error, "strerror", None) or str(error)
    text = credentials_hidden(" ".join(text.split()))
    if isinstance(error, OSError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def not_read(place: object, error: OSError) -> str:
    """Words an error of reading at a place, and the next step where it is not about the place alone."""
    message = f"{place}: can't be read ({error.strerror})"
    if isinstance(error, PermissionError):
        return f"{message}; set credentials in the environment that may read it"
    if passing_error(error):
        return f"{message}; check the network and the address of the server, and try again"
    return message
