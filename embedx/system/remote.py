"""Reads URLs by fsspec; this module is imported only where there is a URL.

Each process opens its own connections when it first reads, because fsspec's don't survive a fork.
"""

from __future__ import annotations

import errno
import io
import random
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
from fsspec.caching import AllBytes
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile

from embedx.credentials import without_credentials
from embedx.errors import ConfigError, unknown
from embedx.paths import mark_of_commit
from embedx.system.links import LONGEST_PAGE, ListedFile, listed_by_links, matching_links
from embedx.system.passing import LaterError
from embedx.system.remote_errors import cause_of, final_error, status_of, words_of
from embedx.values import MAX_BYTES, size_text, too_large

_ATTEMPTS = 4
_FIRST_DELAY = 0.5
"""The seconds before the second attempt; each further delay is twice as long."""
_PIECE = 1 << 20
_NO_SUCH_RANGE = 416
_BUFFER = 4 << 20
"""The number of bytes to read ahead in a file that is read piece by piece."""
_EXTRAS = {**dict.fromkeys(("s3", "s3a", "gs", "gcs", "http", "https"), "cloud"), "hf": "hf"}
"""The extras that install the packages of schemes."""
_TIMES = ("LastModified", "updated", "mtime", "modified", "last_modified")
"""The entries in which file systems give the time of a file's last modification."""

T = TypeVar("T")


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


def read(url: str, offset: int | None = None, size: int | None = None, most: int = MAX_BYTES) -> bytes:
    """Reads `size` bytes from `offset` on, or everything if `offset` is None.

    Raises:
        OSError: If the bytes can't be read, after several attempts for a failure that may pass, or everything is more
            than `most` bytes, which are not held in memory.
    """
    if offset is None:
        return _attempt(url, lambda fs, path: _everything(fs, path, most))
    end = offset + (size or 0)
    data = _attempt(url, lambda fs, path: bytes(fs.cat_file(path, start=offset, end=end)))
    if len(data) > end - offset:
        raise OSError(errno.EINVAL, "its server sends no parts of files, only whole ones; download it")
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
        try:
            return io.BytesIO(read(url))
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            text = f"its server does not tell its size, and it has more than {size_text(MAX_BYTES)}; download it"
            raise OSError(errno.EFBIG, text) from error
    return cast(BinaryIO, _RemoteFile(None, url, block_size=_BUFFER, size=size))


def list_files(url: str) -> list[ListedFile]:
    """Lists all files below a folder; raises an OSError if it can't be listed."""
    if _is_http(url):
        return list(listed_by_links(url, _page))
    return _attempt(url, lambda fs, path: list(_files(fs, path)))


def find(pattern: str) -> list[str]:
    """Returns the files that match a pattern with wildcards, by name; raises an OSError if they can't be listed."""
    if _is_http(pattern):
        return matching_links(pattern, _page)
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


class _Sink(io.BytesIO):
    """Takes what is downloaded, at most so many bytes."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def write(self, piece: Any) -> int:
        if self.tell() + len(piece) > self._most:
            raise OSError(errno.EFBIG, too_large(self._most))
        return super().write(piece)


def _everything(fs: Any, path: str, most: int) -> bytes:
    sink = _Sink(most)
    if "http" in fs.protocol:
        fs.get_file(path, sink, chunk_size=_PIECE)  # in pieces, each decompressed as the server's headers say
        return sink.getvalue()
    try:
        sink.write(fs.cat_file(path, start=0, end=most + 1))
    except Exception as error:
        if status_of(error) != _NO_SUCH_RANGE:  # an empty object has no first byte
            raise
    return sink.getvalue()


def _page(url: str) -> bytes:
    return read(url, most=LONGEST_PAGE)


def _is_http(url: str) -> bool:
    return url.partition("://")[0].lower() in ("http", "https")


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
            last = cause_of(error)
            final = final_error(last)
            if final is not None:
                raise final from error
    raise LaterError(errno.EIO, f"{words_of(last)}, at each of {_ATTEMPTS} attempts") from last


def _file_system(url: str) -> tuple[Any, str]:
    scheme = url.partition("://")[0].lower()
    options: dict[str, Any] = {}
    if scheme in ("s3", "s3a", "gs", "gcs") and "@" in url.split("/")[2]:
        url = without_credentials(url)  # they know no user, and would show it as the bucket's name
    if scheme in ("s3", "s3a"):
        # One request per object, and no attempts besides those made here.
        options = {"max_concurrency": 1, "config_kwargs": {"retries": {"total_max_attempts": 1}}}
    elif scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
        client = {"timeout": timeout, "trust_env": True}
        return fsspec.filesystem(scheme, client_kwargs=client), url  # in which `::` is no chain
    fs, path = url_to_fs(url, **options)
    if isinstance(fs, LocalFileSystem):
        raise ValueError("a file of this machine is read by its path alone; give that")
    if scheme in ("s3", "s3a"):
        fs.retries = 1
    return fs, path


def _files(fs: Any, folder: str) -> Iterator[ListedFile]:
    folder = folder.rstrip("/")
    for name, info in fs.find(folder, detail=True).items():
        below = name.removeprefix(folder).lstrip("/")
        url = fs.unstrip_protocol(name)
        time_ns = _time_ns(info)
        yield ListedFile(url, below, info.get("size"), mark_of_commit(url.encode()) if time_ns is None else time_ns)


def _time_ns(info: Mapping[str, Any]) -> int | None:
    value = next((info[name] for name in _TIMES if name in info), None)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    seconds = value.timestamp() if isinstance(value, datetime) else value
    return int(seconds * 1e9) if isinstance(seconds, (int, float)) else None
