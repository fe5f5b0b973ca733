"""The types of settings' values, and the parsing and wording of paths, sizes, channels and batch sizes."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, SupportsIndex
from urllib.parse import unquote_to_bytes

from embedx.errors import ConfigError

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
StoredDtype = Literal["float32", "float16", "bfloat16"]
Pooling = Literal["avg", "max", "gem", "cls", "none"]
RuntimeName = Literal["auto", "eager", "compile", "openvino"]
DecoderName = Literal["cpu", "cuda"]
OnError = Literal["reject", "fail"]
Interpolation = Literal["bilinear", "bicubic"]

MAX_PIXELS = 178_956_970
"""The default limit of an image's pixels, against decompression bombs; Pillow's own default."""

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/", re.IGNORECASE)
"""The beginning of a URL; one slash is enough, as pathlib makes one of two."""
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_SIZE_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}


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


def without_credentials(url: str, *, query: bool = False) -> str:
    """Returns a URL without user and password, and without its query, where signatures stand; a path as it is.

    Args:
        url: The URL or path.
        query: True to keep the query.
    """
    if not is_url(url):
        return url
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    if scheme.lower() in ("http", "https") and not query:
        host, path = re.split("[?#]", host)[0], re.split("[?#]", path)[0]
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def expand_path(text: str | Path) -> str:
    """Returns a path with `file://`, `~`, `$NAME` and `${NAME}` resolved, unless a file of that very name exists.

    A URL of another scheme is returned as it is.

    Raises:
        ValueError: If a variable is not set, the home folder is unknown, or `file://` names another machine.
    """
    text = str(text)
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
    """Expands a backbone's name if it is a path, also behind `hf:`.

    Raises:
        ValueError: If it can't be resolved.
    """
    prefix = "hf:" if text.startswith("hf:") else ""
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
                object.__setattr__(config, field.name, field.metadata["path"](os.fspath(value)))
            except ValueError as error:
                faults.append(f"--{field.name.replace('_', '-')} {error}")
    ConfigError.check(faults)


def out_of_range(config: Any) -> list[str]:
    """Returns one message for each of a configuration's numbers that is below its lowest or above its highest value."""
    faults = []
    for field in dataclasses.fields(config):
        value, lowest = getattr(config, field.name), field.metadata.get("lowest")
        highest = field.metadata.get("highest", 2**31 - 1)
        if lowest is not None and value not in (None, "auto") and not lowest <= value <= highest:
            bound = f"at least {lowest}" if value < lowest else f"at most {highest}"
            faults.append(f"--{field.name.replace('_', '-')} is {value:.10g}; give a whole number of {bound}")
    return faults


def output_faults(out: Path) -> list[str]:
    """Returns a message if a store can't be written to this path."""
    if re.search(r"[\0\n\r\ud800-\udfff]", str(out)):  # stdout shows the path, in one line of text
        return [f"--out {str(out)!r}: has bytes that are no text, or a line end; choose another path"]
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


def parse_size(text: str | int) -> int:
    """Reads a size in bytes such as `134217728`, `128MiB` or `1.5GB`.

    Raises:
        ValueError: If `text` is not a positive number with one of the units B, kB, MB, GB, KiB, MiB, GiB.
    """
    match = re.fullmatch(r"\s*([\d.]+)\s*([kmg]?i?)b?\s*", str(text), re.IGNORECASE)
    try:
        size = int(float(match[1]) * _SIZE_UNITS[match[2].lower()]) if match else 0
    except (ValueError, KeyError):
        size = 0
    if size <= 0:
        raise ValueError(f"{text!r} is not a size; write it like 128MiB, 1GB or 1000000")
    return size


def parse_batch_size(value: str | int) -> int | Literal["auto"]:
    """Reads a number of images, or `auto`.

    Raises:
        ValueError: If the value is neither.
    """
    if value == "auto":
        return "auto"
    if re.fullmatch(r"-?\d+", str(value)):
        return int(value)
    raise ValueError(f"{value!r} is not a number of images; write it like 64, or auto")


def size_text(size: int) -> str:
    """Returns a number of bytes in words for people, such as `1.4 MiB`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def parse_resize(value: str | int | Sequence[int]) -> int | tuple[int, int]:
    """Reads `232`, the length of the shorter side, or `240x320`, height and width.

    Raises:
        ValueError: If the value is neither.
    """
    if isinstance(value, str | int):
        match = re.fullmatch(r"(\d+)(?:x(\d+))?", str(value).strip())
        sides = [int(side) for side in match.groups() if side] if match else []
    else:
        is_sides = isinstance(value, Sequence) and all(isinstance(side, SupportsIndex) for side in value)
        sides = [*value] if is_sides else []
    if not 1 <= len(sides) <= 2 or min(sides) < 1:
        raise ValueError(f"{value!r} is not a size; write 232 for the shorter side, or 240x320 for height and width")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def parse_channels(value: str | float | Sequence[str | float]) -> tuple[float, float, float]:
    """Reads three numbers, one each for red, green and blue, such as `0.485,0.456,0.406`, or one for all of them.

    Each may be a fraction such as `127/255`.

    Raises:
        ValueError: If the value is neither three numbers nor one.
    """
    one = value if isinstance(value, Iterable) else [value]
    try:
        numbers = [_number(part) for part in (one.split(",") if isinstance(one, str) else one)]
    except (ValueError, TypeError, ZeroDivisionError):
        numbers = []
    if len(numbers) not in (1, 3):
        raise ValueError(f"{value!r} is not three numbers; write them like 0.485,0.456,0.406, or one for all: 127/255")
    red, green, blue = numbers * (3 // len(numbers))
    return red, green, blue


def _number(text: str | float) -> float:
    """Reads a number or a fraction of two."""
    above, slash, below = text.partition("/") if isinstance(text, str) else (text, "", "")
    return float(above) / float(below) if slash else float(above)


def rows_per_unit(shard_size: int, row_bytes: int, batch_size: int) -> int:
    """Returns the rows of a shard of about `shard_size` bytes: whole batches, and at least one."""
    return max(1, shard_size // (row_bytes * batch_size)) * batch_size
