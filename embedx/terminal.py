"""Text that others wrote, made safe to show on a terminal and in a log: names, values, libraries' messages."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from embedx.credentials import credentials_hidden

_CONTROLS = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
"""C0 and C1 controls, DEL, ends of lines, marks and overrides of the direction of text, and halves of surrogates."""
_IN_A_LINE = re.compile(f"[{_CONTROLS}]")
_IN_A_TEXT = re.compile(f"(?![\n\t])[{_CONTROLS}]")
_BAR = re.compile(r"(?:[\n\r]|\x1b\[A)*")
"""The begin of what a progress bar writes, which takes the place of what it wrote before."""


def one_line(text: str) -> str:
    r"""Returns the text in one line: with escapes such as `\n` and `\x1b` in place of all that steers a terminal."""
    return _IN_A_LINE.sub(_escape, text)


def without_controls(text: str) -> str:
    """Returns the text with escapes in place of all that steers a terminal, but for line ends and tabs."""
    return _IN_A_TEXT.sub(_escape, text)


def traceback_lines(error: BaseException) -> Iterator[str]:
    """Yields an error's traceback; of a message with several lines each further one is marked by `|`."""
    parts = traceback.TracebackException.from_exception(error).format()
    for part in parts:
        text = without_controls(part.strip("\n"))
        yield from (text if part.startswith("  File ") else text.replace("\n", "\n  | ")).split("\n")


class GuardedStream:
    """A stream of text on which libraries can write lines, and bars of progress, but nothing else that steers it.

    Args:
        stream: The stream that gets the text.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        """Returns what the stream has by this name."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes a text, with escapes in place of controls, and without credentials."""
        begin = _BAR.match(text)
        length = begin.end() if begin else 0
        self._stream.write(text[:length] + without_controls(credentials_hidden(text[length:])))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes texts one after the other."""
        for line in lines:
            self.write(line)


def guard_stderr() -> None:
    """Guards this process's stderr: warnings, logs and tracebacks of libraries may hold names that others chose."""
    if sys.stderr is not None and not isinstance(sys.stderr, GuardedStream):
        sys.stderr = GuardedStream(sys.stderr)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
