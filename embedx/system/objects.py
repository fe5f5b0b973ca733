"""Objects in buckets: written under conditions that their server checks, listed and read, by fsspec.

Every answer is judged by its HTTP status, as the clients word errors differently. An answer may be lost, though the
server has done what it was asked for, and the request is then made again: the metadata of an object that is there tell
who has made it.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar, cast

from embedx.system import google_puts
from embedx.system.remote_errors import status_of

T = TypeVar("T")

_ATTEMPTS = 8
"""The attempts to write, over about half a minute; a server that is asked to slow down has recovered by then."""
_EXISTS = 412
_NO_PARTS = 4 << 30
"""The bytes below which an object is written by one request; S3 and Google's storage take at most 5 GiB at once."""
EMPTY = hashlib.sha256().hexdigest()
"""The sha256 of no bytes."""
_S3 = ("s3", "s3a")
_GOOGLE = ("gs", "gcs")
_MAKER, _SHA256 = "embedx-maker", "embedx-sha256"
"""The names of an object's metadata."""


class StatedObject(NamedTuple):
    """The facts of an object, as its server states them."""

    size: int
    """The number of bytes."""
    modified: float | None
    """The time of writing by the server's clock, in seconds since 1970; None if it does not say."""
    version: str | None = None
    """The text that tells the object from others of its name; None if the server gives none."""
    sha256: str | None = None
    """The sha256 that its writer has stated; None if it has not."""
    maker: str | None = None
    """The token of the request that made it; None if it is not stated."""


def takes_conditions(scheme: str) -> bool:
    """Tells whether the client of a scheme asks its server to create an object only where there is none.

    fsspec's own way, for those that have none, is to look first and then to write, which no probe can tell from it.
    """
    import fsspec

    client = fsspec.get_filesystem_class(scheme)
    return bool(client.async_impl) and "mode" in inspect.signature(client.pipe_file).parameters


def put_new(url: str, data: bytes, sha256: str) -> bool:
    """Creates an object, unless there is one; returns False then, and changes nothing.

    Args:
        url: The URL of the object.
        data: The bytes of the object.
        sha256: The sha256 of the bytes, which the object's metadata state.

    Raises:
        OSError: If neither can be told, after several attempts.
    """
    maker = secrets.token_hex(8)

    def step(fs: Any, path: str) -> bool:
        fs.pipe_file(path, data, mode="create", **_options(fs, {_SHA256: sha256, _MAKER: maker}))
        return True

    is_done = _attempt(url, _refused(step), _ATTEMPTS)
    return is_done or getattr(stat(url), "maker", None) == maker  # as the answer may have been lost


def put(url: str, data: bytes, *, replacing: str | None = None) -> bool:
    """Writes an object, in the place of one that may be there.

    Args:
        url: The URL of the object.
        data: The bytes of the object.
        replacing: The version that it may replace, and no other; None for any or none.

    Returns:
        False if another version, or none, is there; nothing is changed then.

    Raises:
        OSError: If it can't be written, after several attempts.
    """
    maker = secrets.token_hex(8)
    stated = {} if replacing is None else {_SHA256: hashlib.sha256(data).hexdigest()}

    def step(fs: Any, path: str) -> bool:
        metadata = {_MAKER: maker} | stated
        options = _options(fs, metadata)
        if replacing is not None and _is_of(fs, _S3):
            options["IfMatch"] = replacing
        elif replacing is not None:
            there = _stat(fs, path)  # a client may have no such condition
            if there is None or there.version != replacing:
                return False
            if _is_of(fs, _GOOGLE):
                google_puts.replace(fs, path, data, metadata, replacing)
                return True
        fs.pipe_file(path, data, **options)
        return True

    is_done = _attempt(url, _refused(step, missing=replacing is not None), _ATTEMPTS)
    return is_done or getattr(stat(url), "maker", None) == maker  # as the answer may have been lost


def read(url: str, start: int | None = None, size: int | None = None) -> bytes:
    """Reads an object, or `size` bytes from `start` on; errors as by `remote.read`."""
    from embedx.system import remote

    return remote.read(url, start, size, _NO_PARTS)


def stat(url: str) -> StatedObject | None:
    """Returns what the server says of an object; None if there is none.

    Raises:
        OSError: If it can't be told.
    """
    return _attempt(url, _stat)


def size(url: str) -> int | None:
    """Returns an object's number of bytes, by one request; None if there is none.

    Raises:
        OSError: If it can't be told.
    """

    def step(fs: Any, path: str) -> int | None:
        fs.invalidate_cache()
        try:
            found = fs.info(path)
            return int(found["size"]) if found["type"] == "file" else None
        except FileNotFoundError as error:
            if status_of(error) in (None, 404):
                return None
            raise

    return _attempt(url, step)


def listed(url: str) -> Iterator[tuple[str, StatedObject]]:
    """Yields each object below a URL, in order, by the rest of its name; those that only mark a folder are left out.

    Raises:
        OSError: If they can't be listed, such as in a bucket that is not there.
    """
    if _is_s3(url):
        from embedx.system.remote import pages_of_s3

        for _, prefix, page in pages_of_s3(url):  # in order
            own = ((each["Key"].removeprefix(prefix), each) for each in page.get("Contents", ()))
            yield from ((name, _of(each)) for name, each in own if name and not name.endswith("/"))
        return

    def step(fs: Any, path: str) -> list[tuple[str, StatedObject]]:
        found, below = _find(fs, path), path.rstrip("/") + "/"
        own = ((name.removeprefix(below), info) for name, info in found.items() if name.startswith(below))
        return sorted((name, _of(info)) for name, info in own if name and not name.endswith("/"))

    yield from _attempt(url, step)


def names(url: str) -> list[str]:
    """Returns the names of the objects and folders in a folder, in order; none if there is no such folder.

    Raises:
        OSError: If they can't be listed.
    """

    def step(fs: Any, path: str) -> list[str]:
        fs.invalidate_cache()
        below = path.rstrip("/") + "/"
        return [name.removeprefix(below) for name in fs.ls(path, detail=False) if name.startswith(below)]

    try:
        found = _names_in_s3(url) if _is_s3(url) else _attempt(url, step)
    except FileNotFoundError:
        return []
    return sorted(filter(None, (name.strip("/") for name in found)))


def _names_in_s3(url: str) -> list[str]:
    """Returns the names in a folder of S3, as s3fs's `ls` lists the folder above where there is nothing."""
    from embedx.system.remote import pages_of_s3

    found = []
    for _, prefix, page in pages_of_s3(url, Delimiter="/"):
        found += [each["Key"].removeprefix(prefix) for each in page.get("Contents", ())]
        found += [each["Prefix"].removeprefix(prefix) for each in page.get("CommonPrefixes", ())]
    return found


def _is_s3(url: str) -> bool:
    return url.partition("://")[0].lower() in _S3


def remove(url: str) -> None:
    """Removes an object, if there is one.

    Raises:
        OSError: If it can't be removed.
    """
    with contextlib.suppress(FileNotFoundError):
        _attempt(url, lambda fs, path: fs.rm_file(path), _ATTEMPTS)


def _attempt(url: str, step: Callable[[Any, str], T], attempts: int | None = None) -> T:
    """Calls `remote.attempt`, whose module takes long to import, which commands without a bucket need not wait for."""
    from embedx.system import remote

    return remote.attempt(url, step, *(() if attempts is None else (attempts,)))


def _refused(step: Callable[[Any, str], bool], *, missing: bool = False) -> Callable[[Any, str], bool]:
    """Has a step return False where the server says that its condition does not hold."""

    def guarded(fs: Any, path: str) -> bool:
        try:
            return step(fs, path)
        except Exception as error:
            status = status_of(error)
            is_taken = status is None and isinstance(error, FileExistsError)
            if is_taken or status == _EXISTS or (missing and status == 404):
                return False
            raise

    return guarded


def _options(fs: Any, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Returns the options by which a client writes an object at once and with metadata, as far as it can."""
    if _is_of(fs, _S3):
        return {"chunksize": _NO_PARTS, "Metadata": dict(metadata)}
    if _is_of(fs, _GOOGLE):
        return {"chunksize": _NO_PARTS, "metadata": dict(metadata)}
    return {}


def _stat(fs: Any, path: str) -> StatedObject | None:
    try:
        if _is_of(fs, _S3):  # whose `info` lists the bucket where there is no object, and does not give the metadata
            bucket, key, _ = fs.split_path(path)
            head = fs.call_s3("head_object", Bucket=bucket, Key=key)
            return _of({**head, "Size": head["ContentLength"], "metadata": head["Metadata"]})
        fs.invalidate_cache()
        return _of(fs.info(path))
    except FileNotFoundError as error:
        if status_of(error) in (None, 404):
            return None
        raise


def _key_of(path: str) -> str:
    """Returns the beginning of the keys of what is below a path."""
    key = path.strip("/").partition("/")[2]
    return f"{key}/" if key else ""


def _find(fs: Any, path: str) -> dict[str, dict[str, Any]]:
    """Returns the objects below a path, by their names."""
    fs.invalidate_cache()
    if _is_of(fs, _GOOGLE):  # which else asks for an object of that name where it finds none below it
        found = fs.find(path.strip("/").partition("/")[0], prefix=_key_of(path), detail=True)
    else:
        found = fs.find(path, detail=True)
    return cast(dict[str, dict[str, Any]], found)


def _of(info: Mapping[str, Any]) -> StatedObject:
    from embedx.system.remote import time_ns

    metadata = info.get("metadata") or {}
    written = time_ns(info)
    version = next((str(info[name]) for name in ("ETag", "generation", "etag") if info.get(name)), None)
    modified = None if written is None else written / 1e9
    size = info["size"] if "size" in info else info["Size"]
    return StatedObject(size, modified, version, metadata.get(_SHA256), metadata.get(_MAKER))


def _is_of(fs: Any, schemes: tuple[str, ...]) -> bool:
    names = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return not set(schemes).isdisjoint(names)
