"""Reads URLs by fsspec; this module is imported only where there is a URL.

Each process opens its own connections when it first reads, because fsspec's don't survive a fork.
"""

from __future__ import annotations

import errno
import io
import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
from fsspec.caching import AllBytes, ReadAheadCache
from fsspec.spec import AbstractBufferedFile

from embedx.errors import ConfigError, unknown
from embedx.paths import mark_of_commit
from embedx.system.file_systems import connect, file_system, s3_reads
from embedx.system.links import LONGEST_PAGE, ListedFile, listed_by_links, matching_links
from embedx.system.passing import LaterError
from embedx.system.remote_errors import cause_of, final_error, status_of, words_of
from embedx.values import MAX_BYTES, size_text, too_large

_ATTEMPTS = 4
_FIRST_DELAY = 0.5
"""The seconds before the second attempt; each further delay is twice as long."""
_LONGEST_DELAY = 10.0
_PIECE = 1 << 20
_NO_SUCH_RANGE = 416
_BUFFER = 4 << 20
"""The number of bytes to read ahead in a file that is read piece by piece."""
_GLANCE = 64 << 10
_SCAN = 16 << 20
"""The numbers of bytes to read ahead of a place, in a file that is gone through, which is far from the last or near."""
_NEAR = 4 << 20
"""The largest number of bytes between two places that it is better to read than to ask again for."""
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
        return attempt(url, lambda fs, path: _everything(fs, path, most))
    end = offset + (size or 0)
    data = attempt(url, lambda fs, path: _range(fs, path, offset, end))
    if len(data) > end - offset:
        raise OSError(errno.EINVAL, "its server sends no parts of files, only whole ones; download it")
    return data


def open_url(url: str, *, in_parts: bool) -> BinaryIO:
    """Opens a file for reading at any position; if need be, all of it is held in memory.

    Raises:
        OSError: If it can't be opened, or the server can't send ranges although the file will be read `in_parts`.
    """
    size = attempt(url, lambda fs, path: fs.info(path)["size"])
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
    file = _RemoteFile(None, url, block_size=_BUFFER, size=size)
    if in_parts:
        file.cache = _ScanCache(_GLANCE, file.cache.fetcher, size)
    return cast(BinaryIO, file)


def list_files(url: str) -> Iterator[ListedFile]:
    """Yields all files below a folder, page by page where it is one of S3; raises an OSError if it can't be listed."""
    if _is_http(url):
        return listed_by_links(url, _page)
    pages = _pages_of_s3(url) if url.lower().startswith(("s3://", "s3a://")) and "::" not in url else iter(())
    first = next(pages, None)
    if first is not None:
        return itertools.chain([first], pages)
    return iter(attempt(url, lambda fs, path: list(_files(fs, path))))


def find(pattern: str) -> list[str]:
    """Returns the files that match a pattern with wildcards, by name; raises an OSError if they can't be listed."""
    if _is_http(pattern):
        return matching_links(pattern, _page)
    return attempt(pattern, lambda fs, path: sorted(fs.unstrip_protocol(name) for name in fs.glob(path)))


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

    return attempt(url, step)


class _RemoteFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """fsspec's buffered file, whose ranges are fetched with this module's attempts and reasons."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        data = attempt(self.path, lambda fs, path: _range(fs, path, start, end))
        if len(data) == self.size:  # also where the server sends nothing less
            self.cache = AllBytes(size=self.size, data=data)
            data = data[start:end]
        if len(data) != end - start:
            raise OSError(errno.EIO, f"its server sent {len(data)} bytes where {end - start} were asked for")
        return data


class _ScanCache(ReadAheadCache):  # type: ignore[misc]  # fsspec has no types
    """Reads ahead in a file that is gone through from place to place: far where these are near, else hardly at all."""

    def _fetch(self, start: int | None, end: int | None) -> bytes:
        is_near = self.end > 0 and (start or 0) - self.end <= _NEAR
        self.blocksize = _SCAN if is_near else _GLANCE
        return bytes(super()._fetch(start, end))


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
        connect(fs)
        fs.get_file(path, sink, chunk_size=_PIECE)  # in pieces, each decompressed as the server's headers say
        return sink.getvalue()

    def by_fs() -> bytes:
        connect(fs)
        try:
            sink.write(fs.cat_file(path, start=0, end=most + 1))
        except Exception as error:
            if status_of(error) != _NO_SUCH_RANGE:  # an empty object has no first byte
                raise
        return sink.getvalue()

    return s3_reads().get(fs, path, None, most, by_fs) if "s3" in fs.protocol else by_fs()


def _range(fs: Any, path: str, start: int, end: int) -> bytes:
    def by_fs() -> bytes:
        connect(fs)
        return bytes(fs.cat_file(path, start=start, end=end))

    return s3_reads().get(fs, path, (start, end), end - start, by_fs) if "s3" in fs.protocol else by_fs()


def _page(url: str) -> bytes:
    return read(url, most=LONGEST_PAGE)


def _is_http(url: str) -> bool:
    return url.partition("://")[0].lower() in ("http", "https")


def attempt(url: str, step: Callable[[Any, str], T], attempts: int = _ATTEMPTS) -> T:
    """Calls `step` with the file system and path of a URL, and again after a delay while its error may pass.

    Raises:
        OSError: If no attempt succeeds; its text shows no credentials of URLs.
    """
    for number in range(attempts):
        if number:
            time.sleep(min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** (number - 1)) * random.uniform(0.5, 1))
        try:
            return step(*file_system(url))
        except Exception as error:
            last = cause_of(error)
            final = final_error(last)
            if final is not None:
                raise final from error
    raise LaterError(errno.EIO, f"{words_of(last)}, at each of {attempts} attempts") from last


def _files(fs: Any, folder: str) -> Iterator[ListedFile]:
    folder = folder.rstrip("/")
    for name, info in fs.find(folder, detail=True).items():
        below = name.removeprefix(folder).lstrip("/")
        url = fs.unstrip_protocol(name)
        written = time_ns(info)
        yield ListedFile(url, below, info.get("size"), mark_of_commit(url.encode()) if written is None else written)


def _pages_of_s3(url: str) -> Iterator[ListedFile]:
    """Yields the objects below a prefix, of which one page is held at a time."""
    scheme = url.partition("://")[0].lower()
    for bucket, prefix, page in pages_of_s3(url):
        for each in page.get("Contents", ()):
            if (name := each["Key"].removeprefix(prefix)) and not name.endswith("/"):
                yield ListedFile(f"{scheme}://{bucket}/{each['Key']}", name, each["Size"], time_ns(each))


def pages_of_s3(url: str, **options: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yields each page of what S3 lists below a prefix, with the bucket and the prefix.

    Args:
        url: The URL of the prefix.
        options: The further parameters of ListObjectsV2, such as `Delimiter`.

    Raises:
        OSError: If a page can't be had, after several attempts.
    """
    fs, path = file_system(url)
    bucket, _, key = path.partition("/")
    asked = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", **options}
    connect(fs)
    while True:
        page = attempt(url, partial(_page_of_s3, dict(asked)))
        yield bucket, asked["Prefix"], page
        if not page.get("IsTruncated"):
            return
        asked["ContinuationToken"] = page["NextContinuationToken"]


def _page_of_s3(asked: Mapping[str, str], fs: Any, _: str) -> Mapping[str, Any]:
    answer: Mapping[str, Any] = fs.call_s3("list_objects_v2", **asked)
    return answer


def time_ns(info: Mapping[str, Any]) -> int | None:
    """Returns the time at which a file was last modified, by a file system's account of it; None if it has none."""
    value = next((info[name] for name in _TIMES if name in info), None)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    seconds = value.timestamp() if isinstance(value, datetime) else value
    return int(seconds * 1e9) if isinstance(seconds, (int, float)) else None
