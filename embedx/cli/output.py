"""The one console, and the two streams: data to stdout, talk to stderr."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console

STDERR = Console(stderr=True, highlight=False)
"""Notices, progress and errors."""
STDOUT = Console(highlight=False)
"""Tables for people; plain data is printed by `print_line` and `print_json`, never wrapped or coloured."""


def print_line(text: str) -> None:
    """Prints one line of data."""
    print(text, file=sys.stdout, flush=True)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Prints one JSON value."""
    print(json.dumps(value, indent=indent), file=sys.stdout, flush=True)


def size_text(size: int) -> str:
    """A number of bytes for people, as `1.4 MiB`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
