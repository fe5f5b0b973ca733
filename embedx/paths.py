"""Paths and URLs, as settings and sources give them: resolved, told apart, and checked."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote_to_bytes

from embedx.credentials import without_credentials
from embedx.errors import ConfigError
from embedx.terminal import one_line

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/", re.IGNORECASE)
"""The beginning of a URL; one slash is enough, as pathlib makes one of two."""

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class BucketPath:
    """The place of a store in a bucket, or of something in it, by what a store's place needs of a Path."""

    url: str
    """The URL, without a slash at its end."""

    def __truediv__(self, name: object) -> BucketPath:
        return BucketPath(f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> BucketPath:
        """The place above; a bucket itself has none, and is its own."""
        above = self.url.rpartition("/")[0]
        return self if above.endswith("/") else BucketPath(above)

    def absolute(self) -> BucketPath:
        """Returns the place itself, as a URL depends on no working directory."""
        return self

    def resolve(self) -> BucketPath:
        """Returns the place itself, as buckets have no links."""
        return self


StorePath: TypeAlias = Path | BucketPath
"""The place of a store: a folder of this machine, or the beginning of the names of objects in a bucket."""


def store_path(text: str | StorePath) -> StorePath:
    """Returns the place of a store that a path or URL names (see `expand_path`).

    Raises:
        ValueError: If it can't be resolved, or is a URL without a bucket's name.
    """
    if isinstance(text, BucketPath):
        return text
    path = expand_path(text)
    if not _SCHEME.match(path) or os.path.lexists(path):
        return Path(path)
    scheme, _, rest = path.partition(":/")
    url = without_credentials(f"{scheme.lower()}://{rest.strip('/')}")
    if url.endswith("://") or "?" in url or "#" in url:
        raise ValueError(f"{url} names no place in a bucket; write {scheme.lower()}://BUCKET/NAME")
    return BucketPath(url)


def cache_folder() -> Path:
    """Returns the folder of what is kept from one command to the next: `embedx` in the user's folder of caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "embedx"


def is_url(location: str | bytes) -> bool:
    """Tells whether a location begins with a scheme, such as `s3://`; any other is a path."""
    if isinstance(location, bytes):
        return b"://" in location and is_url(os.fsdecode(location))  # most are paths, and need not be decoded
    return _URL.match(location) is not None


def mark_of_commit(url: bytes) -> int | None:
    """Returns a number that stands for the commit in a URL of the Hugging Face hub; None for any other location.

    It takes the place of the time of modification, which the hub does not list: data of another commit are other data.
    """
    commit = re.match(rb"hf://[^@]*@([0-9a-f]{40})(/|$)", url)
    return int(commit[1][:15], 16) if commit else None


def expand_path(text: str | Path) -> str:
    """Returns a path with `file://`, `~`, `$NAME` and `${NAME}` resolved, unless a file of that very name exists.

    A URL of another scheme is returned as it is.

    Raises:
        ValueError: If it is empty or has a NUL byte, a variable is not set, the home folder is unknown, or `file://`
            names another machine.
    """
    text = str(text)
    if not text or "\0" in text:
        raise ValueError(f"{text!r}: no path is empty, or has a NUL byte; write . for the current folder")
    scheme = _SCHEME.match(text)
    if os.path.lexists(text) or (scheme and scheme[1].lower() != "file"):
        return text
    for found in _VARIABLE.finditer(text):
        if (name := found[1] or found[2]) not in os.environ:
            raise ValueError(f"{text}: the environment variable {name} is not set; set it, or write the path out")
    path = os.path.expandvars(text)
    if scheme:
        return path_of_file_url(path)
    path = os.path.expanduser(path)
    if path == "~" or path.startswith("~/"):
        raise ValueError(f"{text}: this user has no home folder; set HOME, or write the path out")
    return path


def local_path(text: str | Path) -> Path:
    """Returns a path as `expand_path` does, and takes no URL but `file://`.

    Raises:
        ValueError: If it is another URL, or can't be resolved.
    """
    path = expand_path(text)
    if _SCHEME.match(path) and not os.path.lexists(path):
        raise ValueError(f"{text} is a URL, and can't be used here; give a path on this machine")
    return Path(path)


def expand_backbone(text: str) -> str:
    """Expands a backbone's name if it is a path, also behind `hf:` and `openclip:`.

    Raises:
        ValueError: If it can't be resolved.
    """
    prefixes = ("hf:", "openclip:local-dir:", "openclip:")
    prefix = next((prefix for prefix in prefixes if text.startswith(prefix)), "")
    return prefix + expand_path(text.removeprefix(prefix))


def expand_paths(config: Any) -> None:
    """Expands those of a configuration's settings that are paths.

    Raises:
        ConfigError: If some can't be; it names them all.
    """
    faults = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if "path" in field.metadata and value is not None:
            try:
                text = value if isinstance(value, BucketPath) else os.fspath(value)
                object.__setattr__(config, field.name, field.metadata["path"](text))
            except ValueError as error:
                faults.append(f"--{field.name.replace('_', '-')} {error}")
    ConfigError.check(faults)


def output_faults(out: StorePath) -> list[str]:
    """Returns a message if a store can't be written to this path."""
    if one_line(str(out)) != str(out):  # stdout shows the path, in one line of text
        return [f"--out {out}: has bytes that are no text, a line end or another control; choose another path"]
    if isinstance(out, BucketPath):  # the bucket is asked once all else is known to be right
        return []
    existing = out.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        return [f"--out {out}: {existing} is not a folder; choose another path"]
    # Only a folder that is still to be made is judged here: one that is there may be a store that has lost a
    # permission, and a read-only disk may be mended, so those are errors of the run. So are pseudo file systems, on
    # which access() means nothing.
    is_lasting = existing != out.absolute() and not os.statvfs(existing).f_flag & os.ST_RDONLY
    if is_lasting and not os.access(existing, os.W_OK | os.X_OK):
        return [f"--out {out}: no permission to write in {existing}; choose another path"]
    return []


def file_faults(flag: str, path: Path, *, overwrite: bool) -> list[str]:
    """Returns a message if a file can't be written to this path, or would take the place of one without a word.

    Args:
        flag: The flag that names the path, such as `--out`.
        path: The path of the file.
        overwrite: Whether a file that is there may be replaced.
    """
    if path.is_dir():
        return [f"{flag} {path}: it is a folder; give the name of a file in it"]
    if not path.absolute().parent.is_dir():
        return [f"{flag} {path}: there is no folder {path.parent}; make it, or choose another path"]
    if os.path.lexists(path) and not overwrite:
        return [f"{flag} {path}: is there already; choose another path, or give --overwrite to replace it"]
    return []


def path_of_file_url(url: str) -> str:
    """Returns the path of a `file:` URL, with its `%` escapes resolved.

    Raises:
        ValueError: If it names another machine.
    """
    rest = url.partition(":")[2]
    host, path = rest[2:].partition("/")[::2] if rest.startswith("//") else ("", rest[1:])
    if host not in ("", "localhost"):
        raise ValueError(f"{url} names the machine {host}; write file:///PATH for a path on this one")
    return os.fsdecode(unquote_to_bytes(os.fsencode(f"/{path}")))
