"""Reads URLs by fsspec; this module is imported only where there is a URL.

Each process opens its own connections when it first reads, because fsspec's don't survive a fork.
"""

from __future__ import annotations

import errno
import io
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast
from urllib.parse import unquote

import fsspec
from fsspec.caching import AllBytes
from fsspec.core import url_to_fs
from fsspec.spec import AbstractBufferedFile

from embedx.credentials import credentials_hidden
from embedx.errors import ConfigError, unknown
from embedx.paths import mark_of_commit

_ATTEMPTS = 4
_FIRST_DELAY = 0.5
"""The seconds before the second attempt; each further delay is twice as long."""
_BUFFER = 4 << 20
"""The number of bytes to read ahead in a file that is read piece by piece."""
_EXTRAS = {**dict.fromkeys(("s3", "s3a", "gs", "gcs", "http", "https"), "cloud"), "hf": "hf"}
"""The extras that install the packages of schemes."""
_TIMES = ("LastModified", "updated", "mtime", "modified", "last_modified")
"""The entries in which file systems give the time of a file's last modification."""

T = TypeVar("T")


class ListedFile(NamedTuple):
    """A file in the listing of a folder."""

    url: str
    path: str
    """The path below the folder that was listed."""
    size: int | None
    mtime_ns: int | None


def check_schemes(urls: Mapping[str, str]) -> None:
    """Checks that schemes, each given with one of its URLs, can be read.

    Raises:
        ConfigError: If some are unknown, or need a package that is not installed; the message names them.
    """
    faults = []
    for scheme, url in urls.items():
        if scheme not in fsspec.available_protocols():
            faults.append(f"{url}: {unknown('scheme', scheme, fsspec.available_protocols())}")
            continue
        try:
            fsspec.get_filesystem_class(scheme)
        except ImportError as error:
            advice = f"pip install 'embedx[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else error
            faults.append(f"{url}: {scheme}:// needs a package that is not installed: {advice}")
    ConfigError.check(faults)


def read(url: str, offset: int | None = None, size: int | None = None) -> bytes:
    """Reads `size` bytes from `offset` on, or everything if `offset` is None.

    Raises:
        OSError: If the bytes can't be read, after several attempts for a failure that may pass.
    """
    if offset is None:
        return _attempt(url, lambda fs, path: bytes(fs.cat_file(path)))
    end = offset + (size or 0)
    data = _attempt(url, lambda fs, path: bytes(fs.cat_file(path, start=offset, end=end)))
    if len(data) > end - offset:
        raise OSError(errno.EIO, "its server sends no parts of files, only whole ones; download it")
    return data


def open_url(url: str, *, in_parts: bool) -> BinaryIO:
    """Opens a file for reading at any position; if need be, all of it is held in memory.

    Raises:
        OSError: If it can't be opened, or the server can't send ranges although the file will be read `in_parts`.
    """
    size = _attempt(url, lambda fs, path: fs.info(path)["size"])
    if in_parts:
        read(url, 0, 1)
    if size is None:
        return io.BytesIO(read(url))
    return cast(BinaryIO, _RemoteFile(None, url, block_size=_BUFFER, size=size))


def list_files(url: str) -> list[ListedFile]:
    """Lists all files below a folder; raises an OSError if it can't be listed."""
    return _attempt(url, lambda fs, path: list(_files(fs, path)))


def find(pattern: str) -> list[str]:
    """Returns the files that match a pattern with wildcards, by name; raises an OSError if they can't be listed."""
    return _attempt(pattern, lambda fs, path: sorted(fs.unstrip_protocol(name) for name in fs.glob(path)))


def pinned(url: str) -> str:
    """Returns a URL of the Hugging Face hub with the commit to which its revision leads now; any other as it is.

    Raises:
        OSError: If there is no such repository or revision, or no access to it.
    """
    if not url.lower().startswith("hf://"):
        return url
    from huggingface_hub import HfApi

    def step(fs: Any, path: str) -> str:
        place = fs.resolve_path(path)
        if not hasattr(place, "repo_id"):  # a bucket, which has no revisions
            return url
        commit = HfApi().repo_info(place.repo_id, revision=place.revision, repo_type=place.repo_type).sha
        kind = path[: path.index(place.repo_id)]
        return f"hf://{kind}{place.repo_id}@{commit}/{place.path_in_repo}".rstrip("/")

    return _attempt(url, step)


class _RemoteFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """fsspec's buffered file, whose ranges are fetched with this module's attempts and reasons."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        data = _attempt(self.path, lambda fs, path: bytes(fs.cat_file(path, start=start, end=end)))
        if len(data) == self.size:  # also where the server sends nothing less
            self.cache = AllBytes(size=self.size, data=data)
            data = data[start:end]
        if len(data) != end - start:
            raise OSError(errno.EIO, f"its server sent {len(data)} bytes where {end - start} were asked for")
        return data


def _attempt(url: str, step: Callable[[Any, str], T]) -> T:
    """Calls `step` with the file system and path of a URL, and again after a delay while its error may pass.

    Raises:
        OSError: If no attempt succeeds; its text shows no credentials of URLs.
    """
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_FIRST_DELAY * 2 ** (attempt - 1) * random.uniform(0.5, 1))
        try:
            return step(*_file_system(url))
        except Exception as error:
            last = _cause(error)
            final = _final(last)
            if final is not None:
                raise final from error
    raise OSError(errno.EIO, f"{_words(last)}, at each of {_ATTEMPTS} attempts") from last


def _file_system(url: str) -> tuple[Any, str]:
    scheme = url.partition("://")[0]
    options: dict[str, Any] = {}
    if scheme in ("s3", "s3a"):
        # One request per object, and no attempts besides those made here.
        options = {"max_concurrency": 1, "config_kwargs": {"retries": {"total_max_attempts": 1}}}
    elif scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
        options = {"client_kwargs": {"timeout": timeout, "trust_env": True}}
    fs, path = url_to_fs(url, **options)
    if scheme in ("s3", "s3a"):
        fs.retries = 1
    return fs, path


def _cause(error: BaseException) -> BaseException:
    """Returns the HTTP error behind fsspec's FileNotFoundError, which it raises for any status, or else the error."""
    cause = error.__cause__
    behind = isinstance(cause, TimeoutError) or type(cause).__module__.startswith("aiohttp")
    return cause if cause is not None and behind and isinstance(error, FileNotFoundError) else error


def _final(error: BaseException) -> OSError | None:
    """Returns the error to raise for one that will not pass, or None for one that may."""
    status = _status(error)
    if status in (401, 403) or isinstance(error, PermissionError):
        return PermissionError(errno.EACCES, f"no access ({_words(error)})")
    if status in (404, 410) or (status is None and isinstance(error, FileNotFoundError)):
        return FileNotFoundError(errno.ENOENT, "not found")
    if type(error).__name__ == "NoCredentialsError":
        return PermissionError(errno.EACCES, f"{error}; for public data set FSSPEC_S3='{{\"anon\": true}}'")
    passing = (408, 425, 429)
    if (status is not None and 400 <= status < 500 and status not in passing) or isinstance(
        error, (ValueError, TypeError, NotImplementedError, ImportError, IsADirectoryError)
    ):
        return OSError(errno.EIO, _words(error))
    return None


def _status(error: BaseException | None) -> int | None:
    """Returns the HTTP status that caused an error, or None."""
    while error is not None:
        response = getattr(error, "response", None)  # of botocore, or of the hub
        status = response["ResponseMetadata"].get("HTTPStatusCode") if isinstance(response, dict) else None
        status = status or getattr(response, "status_code", None) or getattr(error, "status", None)  # of aiohttp
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None


def _words(error: BaseException) -> str:
    """Returns an error's status and message, or else its text, without the credentials of URLs."""
    if isinstance(status := getattr(error, "status", None), int):
        return f"{status} {getattr(error, 'message', '')}".strip()
    text = getattr(error, "strerror", None) or str(error)
    text = credentials_hidden(" ".join(text.split()))
    if isinstance(error, OSError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _files(fs: Any, folder: str) -> Iterator[ListedFile]:
    if "http" in fs.protocol:
        yield from _linked(fs, re.split("[?#]", folder)[0].rstrip("/"), "")
        return
    folder = folder.rstrip("/")
    for name, info in fs.find(folder, detail=True).items():
        below = name.removeprefix(folder).lstrip("/")
        url = fs.unstrip_protocol(name)
        time_ns = _time_ns(info)
        yield ListedFile(url, below, info.get("size"), mark_of_commit(url.encode()) if time_ns is None else time_ns)


def _linked(fs: Any, root: str, below: str) -> Iterator[ListedFile]:
    """Yields the files to which a server's page of a folder links, and those of the folders below."""
    for info in fs.ls(f"{root}/{below}", detail=True):
        name = info["name"].removeprefix(f"{root}/")
        if name.endswith("/"):
            if not {".", ".."}.intersection(name.split("/")):
                yield from _linked(fs, root, name)
        else:
            yield ListedFile(info["name"], unquote(name), info["size"], None)


def _time_ns(info: Mapping[str, Any]) -> int | None:
    value = next((info[name] for name in _TIMES if name in info), None)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    seconds = value.timestamp() if isinstance(value, datetime) else value
    return int(seconds * 1e9) if isinstance(seconds, (int, float)) else None
