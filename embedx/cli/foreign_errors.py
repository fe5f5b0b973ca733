"""Errors that libraries raise, in words for users: the one place that knows their types and texts.

An error that is not among them is a fault of embedx itself, and is told as one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple


class _Kind(NamedTuple):
    """One kind of foreign error."""

    types: str
    """A pattern for the name of the error's type, or of one of its bases."""
    text: str
    """A pattern for the error's message."""
    words: str
    """The message for users; {error} stands for the library's own."""


_AGAIN = "; once that is done, the same command goes on from what is kept"
_NO_MEMORY = "memory is short ({error}); give a smaller --batch-size or fewer --workers" + _AGAIN
_KINDS = (
    _Kind(
        "RuntimeError|BatchError",
        r"unable to allocate shared memory|unable to mmap|insufficient shared memory",
        "shared memory (/dev/shm) is full; give the container more (Docker's shm-size), fewer --workers, or "
        "--workers 0" + _AGAIN,
    ),
    _Kind(
        "RuntimeError|BatchError",
        r"unable to (open|resize|create|write to) (shared memory object|file </?torch_)",
        "shared memory (/dev/shm) can't be used ({error}); make it a writable tmpfs" + _AGAIN,
    ),
    _Kind(
        "RuntimeError|BlockingIOError",
        r"can't start new thread|Resource temporarily unavailable",
        "the system allows no more threads and processes (the user's limit, or the container's); raise that, or "
        "give fewer --workers and --threads" + _AGAIN,
    ),
    _Kind(
        "ImportError|OSError",
        r"failed to map segment|annot allocate memory",
        "memory is short ({error}); raise the limit of address space, set by ulimit, or the container's" + _AGAIN,
    ),
    _Kind("MemoryError|ArrowMemoryError", "", _NO_MEMORY),
    _Kind("RuntimeError|BatchError", r"(?i)allocator|can't allocate|(not enough|out of) memory", _NO_MEMORY),
    _Kind("ArrowException", "", "a table can't be read or written ({error}); look at its columns' types and values"),
    _Kind("BatchError", "", "a worker failed to read a batch ({error})" + _AGAIN),
    _Kind("RecursionError", "", "an input is nested too deeply to be read ({error})"),
    _Kind("UnicodeEncodeError", "", "a text has no form in the encoding of its reader ({error})"),
    _Kind("OverflowError|ValueError", r"too large to convert|Exceeds the limit", "a number is too large ({error})"),
)


def words_for(error: BaseException) -> str | None:
    """Returns the message for an error of a library's, or for one that it has caused; None if it is not known."""
    for one in _chain(error):
        bases = {base.__name__ for base in type(one).__mro__}
        for kind in _KINDS:
            if any(re.fullmatch(kind.types, base) for base in bases) and re.search(kind.text, str(one)):
                return kind.words.format(error=_last_line(one))
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[-1]:.300}" if lines else type(error).__name__
