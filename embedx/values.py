"""The types of settings' values, and the parsing and wording of sizes, channels and batch sizes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple, SupportsIndex

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
PrecisionName = Literal["auto", Precision]
StoredDtype = Literal["float32", "float16", "bfloat16"]
Pooling = Literal["avg", "max", "gem", "cls", "none"]
RuntimeName = Literal["auto", "eager", "compile", "openvino"]
DecoderName = Literal["cpu", "cuda"]
EngineName = Literal["local", "ray"]
OnError = Literal["reject", "fail"]
ProgressForm = Literal["auto", "plain", "json"]
Interpolation = Literal["bilinear", "bicubic"]

MAX_PIXELS = 178_956_970
"""The default limit of an image's pixels, against decompression bombs; Pillow's own default."""
MAX_BYTES = 1024**3
"""The default limit of an input's bytes, once decompressed."""
MOST_READS = 64
"""The largest number of a worker's reads from afar that are in flight."""

_SIZE_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}


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
    if not 0 < size < 2**63:
        raise ValueError(f"{text!r} is not a size; write it like 128MiB, 1GB or 1000000")
    return size


class Allowed(NamedTuple):
    """A number of inputs that is allowed."""

    given: str
    """The number or percentage that was given."""
    inputs: int
    """The number of inputs that it is a share of."""

    @property
    def number(self) -> int:
        """The allowed number; a fraction of an input does not count."""
        if not self.given.endswith("%"):
            return int(self.given)
        return math.floor(self.inputs * Fraction(self.given[:-1]) / 100)


def parse_allowed(value: str | int) -> str:
    """Reads a number of inputs such as `20`, or a percentage such as `0.5%`.

    Raises:
        ValueError: If the value is neither.
    """
    text = str(value).replace(" ", "")
    match = re.fullmatch(r"\d{1,18}|(\d{1,3}(?:\.\d{1,9})?)%", text)
    if match is None or (match[1] and Fraction(match[1]) > 100):
        raise ValueError(f"{value!r} is neither a number of inputs nor a percentage; write it like 20 or 1%")
    return text


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


def count_text(count: int, noun: str) -> str:
    """Returns a number of things in words, such as `1 fault` or `2 faults`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def parse_share(value: str | float) -> float:
    """Parses a share from 0 to 1: `0.6` or `60%`."""
    text = str(value).strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise ValueError(f"{value!r} is no share; give a percentage such as 60%, or a number from 0 to 1 such as 0.6")
    return share


def too_large(most: int) -> str:
    """Returns the reason of an input that is larger than `--max-bytes`."""
    return f"more than the {size_text(most)} of --max-bytes"


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


def channel_faults(mean: Sequence[float], std: Sequence[float]) -> list[str]:
    """Returns a message for a mean and a standard deviation that no normalisation has."""
    faults = []
    if not all(0 <= value <= 1 for value in mean):
        faults.append(f"--mean is {_channels_text(mean)}; give numbers from 0 to 1: divide those of 0 to 255 by 255")
    if not all(0 < value < math.inf for value in std):
        faults.append(f"--std is {_channels_text(std)}; give three numbers above 0")
    return faults


def _channels_text(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _number(text: str | float) -> float:
    """Reads a number or a fraction of two."""
    above, slash, below = text.partition("/") if isinstance(text, str) else (text, "", "")
    return float(above) / float(below) if slash else float(above)


def rows_per_unit(shard_size: int, row_bytes: int, batch_size: int) -> int:
    """Returns the rows of a shard of about `shard_size` bytes: whole batches, and at least one."""
    return max(1, shard_size // (row_bytes * batch_size)) * batch_size
