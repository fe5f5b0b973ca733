"""Files behind URLs that are fetched once, into a cache, with their sha256 beside them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from embedx.credentials import without_credentials
from embedx.errors import CheckpointError
from embedx.paths import cache_folder
from embedx.system import remote
from embedx.values import size_text

_PIECE = 16 << 20
_INDEX = ".index.json"
"""The end of the name of a sharded checkpoint's index, whose shards stand beside it."""
_RECORD = ".fetched"
"""The end of the name of the record of a file: its URL, size and sha256."""


def fetch(url: str, notice: Callable[[str], None], *, download: bool = True) -> Path:
    """Returns the path in the cache of the file behind a URL, and fetches it if it isn't there whole.

    Of the index of a sharded checkpoint the shards are fetched too.

    Args:
        url: The URL, of any scheme that fsspec reads.
        notice: The function that is told what is fetched, and its size.
        download: False to return the path only, whether the file is there or not.

    Raises:
        CheckpointError: If it can't be fetched; no part of it is left.
        ConfigError: If there is no such scheme, or its package is not installed.
    """
    folder = cache_folder() / hashlib.sha256(without_credentials(url).encode()).hexdigest()[:32]
    path = folder / _name(url)
    if not download or _is_whole(path):
        return path
    remote.check_schemes({url.partition("://")[0].lower(): url})
    _fetch(url, path, notice)
    if path.name.endswith(_INDEX):
        for name in _shards(path):
            if not _is_whole(folder / name):
                _fetch(url[: url.rindex("/") + 1] + name, folder / name, notice)
        _record(path, url)
    return path


def _fetch(url: str, path: Path, notice: Callable[[str], None]) -> None:
    """Fetches a file under a temporary name; its record is written last."""
    shown = without_credentials(url)
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with remote.open_url(url, in_parts=False) as source:
            size = source.seek(0, os.SEEK_END)
            source.seek(0)
            if size > (free := shutil.disk_usage(path.parent).free):
                raise OSError(f"it has {size_text(size)}, and {size_text(free)} are free for {path.parent}")
            notice(f"fetching {shown} ({size_text(size)}) into {path.parent}")
            descriptor, part = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
            with open(descriptor, "wb") as target:
                while piece := source.read(_PIECE):
                    target.write(piece)
        if os.path.getsize(part) != size:
            raise OSError(f"{os.path.getsize(part)} bytes came of {size}")
        os.replace(part, path)
    except OSError as error:
        reason = error.strerror or str(error)
        where = f" ({error.filename})" if error.filename else ""
        raise CheckpointError(
            f"--checkpoint {shown}: can't be fetched ({reason}{where}); check the URL and the network, or download the "
            "file by other means, and give its path"
        ) from error
    finally:
        if part is not None:
            with contextlib.suppress(OSError):
                os.unlink(part)
    if not path.name.endswith(_INDEX):
        _record(path, url)


def _record(path: Path, url: str) -> None:
    content = {"url": without_credentials(url), "size": path.stat().st_size, "sha256": _sha256(path)}
    part = path.with_name(f"{path.name}{_RECORD}.{os.getpid()}")
    part.write_text(json.dumps(content))
    os.replace(part, path.with_name(path.name + _RECORD))


def _is_whole(path: Path) -> bool:
    """Tells whether a file has the bytes that were fetched, and so have an index's shards."""
    record = _read_record(path.with_name(path.name + _RECORD))
    try:
        is_same = path.stat().st_size == record.get("size") and _sha256(path) == record.get("sha256")
        return is_same and (
            not path.name.endswith(_INDEX) or all(_is_whole(path.parent / name) for name in _shards(path))
        )
    except OSError:
        return False


def _read_record(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _shards(index: Path) -> list[str]:
    """Lists the plain names of an index's shards; others are refused when the index is read."""
    try:
        names = {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []
    return sorted(name for name in names if re.fullmatch(r"\w[\w.-]*", name))


def _name(url: str) -> str:
    """Returns the file name at a URL's end, in characters that any file system takes."""
    path = re.split("[?#]", url)[0] if url.lower().startswith("http") else url
    return re.sub(r"[^\w.-]", "_", unquote(path.rstrip("/").rpartition("/")[2]))[-100:].lstrip(".") or "file"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
