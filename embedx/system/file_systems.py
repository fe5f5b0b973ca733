"""The file systems of fsspec of a process: one per scheme for all its threads, with one connection pool.

fsspec itself makes one per thread. A process that was forked makes its own, as connections don't survive a fork.
"""

from __future__ import annotations

import inspect
import os
import threading
import weakref
from typing import Any
from urllib.request import getproxies

import fsspec
from fsspec.asyn import sync
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from embedx.credentials import without_credentials
from embedx.system.s3_reads import S3Reads
from embedx.values import MOST_READS

_S3 = ("s3", "s3a")
_BUCKETS = (*_S3, "gs", "gcs")
_HTTP = ("http", "https")

_lock = threading.Lock()
_shared: dict[tuple[int, str], Any] = {}
"""The file systems by process and scheme."""
_connected = weakref.WeakSet[Any]()
_s3_reads: dict[int, S3Reads] = {}


def _unlock() -> None:
    """Makes a new lock in a process that was forked, as a thread of its parent may have held the old one for ever."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_unlock)


def file_system(url: str) -> tuple[Any, str]:
    """Returns the file system of a URL, and the path that it has there.

    Raises:
        ValueError: If it is a file of this machine.
    """
    scheme = url.partition("://")[0].lower()
    if scheme in _HTTP:
        return _one_for_all(scheme), url  # in which `::` is no chain
    if scheme in _BUCKETS and "::" not in url:
        if "@" in url.split("/")[2]:
            url = without_credentials(url)  # they know no user, and would show it as the bucket's name
        return _one_for_all(scheme), url.partition("://")[2].rstrip("/")
    fs, path = url_to_fs(url)
    if isinstance(fs, LocalFileSystem):
        raise ValueError("a file of this machine is read by its path alone; give that")
    return fs, path


def forget() -> None:
    """Forgets all file systems, so that the next ones follow the environment as it is then."""
    with _lock:
        for fs in _shared.values():
            type(fs).clear_instance_cache()
        _shared.clear()
        _s3_reads.clear()


def connect(fs: Any) -> None:
    """Makes the connection pool of a file system, which threads that need it at once would each make."""
    with _lock:
        if fs in _connected:
            return
        make = getattr(fs, "set_session", None) or getattr(fs, "_set_session", None)
        if inspect.iscoroutinefunction(make):
            sync(fs.loop, make)
        _connected.add(fs)


def s3_reads() -> S3Reads:
    """Returns the buckets that this process reads by obstore."""
    with _lock:
        return _s3_reads.setdefault(os.getpid(), S3Reads())


def _one_for_all(scheme: str) -> Any:
    place = (os.getpid(), scheme)
    with _lock:
        if place not in _shared:
            _shared[place] = _new(scheme)
        return _shared[place]


def _names_proxy_or_user() -> bool:
    """Tells whether the environment has a proxy or passwords of hosts; looking for them takes 0.6 ms a request."""
    netrc = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    return bool(getproxies()) or os.path.exists(netrc)


def _new(scheme: str) -> Any:
    if scheme in _HTTP:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
        return fsspec.filesystem(scheme, client_kwargs={"timeout": timeout, "trust_env": _names_proxy_or_user()})
    if scheme not in _S3:
        return fsspec.filesystem(scheme)
    # One request per object, and no attempts besides those made by `remote`.
    config = {"retries": {"total_max_attempts": 1}, "max_pool_connections": MOST_READS}
    fs = fsspec.filesystem(scheme, max_concurrency=1, config_kwargs=config)
    fs.retries = 1
    return fs
