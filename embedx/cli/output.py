"""The two streams: data goes to stdout, and notices, progress and errors go to stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from embedx.errors import EmbedxError


class StderrConsole(Console):
    """The console of stderr. If its reader goes away or its disk is full, it turns quiet, and the run goes on."""

    show_tracebacks = False
    """True if errors are shown with their tracebacks."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints, or turns quiet where stderr can't be written."""
        try:
            super().print(*objects, **options)
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Sends all further output to the null device; Rich itself would end the process, and close stdout."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class StdoutConsole(Console):
    """The console of stdout."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints tables and text for people.

        Raises:
            BrokenPipeError: If the reader of stdout has gone.
            EmbedxError: If stdout can't be written for another reason.
        """
        with _writing_stdout():
            super().print(*objects, **options)


@contextlib.contextmanager
def data_alone_on_stdout() -> Iterator[None]:
    """Keeps stdout for the data of `print_line`, `print_json` and STDOUT; all else that is printed goes to stderr.

    Descriptor 1 points to stderr meanwhile, so that this holds for C code and for child processes too: a backbone's
    factory may print, and so may the libraries that it uses. A name that stdout's encoding lacks is escaped.
    """
    stdout = sys.stdout  # there is none where descriptor 1 was closed
    encoding = stdout.encoding if stdout else "utf-8"
    data = os.fdopen(os.dup(1), "w", encoding=encoding, errors="backslashreplace")
    os.dup2(2, 1)
    STDOUT.file, sys.stdout = data, sys.stderr
    try:
        yield
    finally:
        STDOUT.file, sys.stdout = None, stdout  # type: ignore[assignment]  # Rich takes None for sys.stdout
        os.dup2(data.fileno(), 1)
        with contextlib.suppress(OSError):  # each print flushes, and has told the error
            data.close()


@contextlib.contextmanager
def _writing_stdout() -> Iterator[None]:
    """Turns an error of writing into an EmbedxError that names stdout; a BrokenPipeError passes."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise EmbedxError(f"stdout can't be written ({error.strerror}); everything else is done") from error


# No markup: a name that looks like it is a name.
STDERR = StderrConsole(stderr=True, highlight=False, markup=False, emoji=False)
"""The console for notices, progress and errors."""
STDOUT = StdoutConsole(highlight=False, markup=False, emoji=False)
"""The console for tables; `print_line` and `print_json` print plain data, never wrapped or coloured."""


def print_line(text: str) -> None:
    """Prints one line of data.

    Raises:
        BrokenPipeError: If the reader of stdout has gone.
        EmbedxError: If stdout can't be written for another reason.
    """
    with _writing_stdout():
        print(text, file=STDOUT.file, flush=True)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Prints one JSON value, over several lines or (`indent=None`) in one."""
    print_line(json.dumps(value, indent=indent))


def facts_table(facts: Mapping[str, str]) -> Table:
    """Returns a table of names and values for people; long values are wrapped."""
    table = Table(Column(style="bold"), Column(overflow="fold"), show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(name, value)
    return table


def numbers_table(*columns: str, title: str | None = None) -> Table:
    """Returns an empty table with these columns, for names and numbers."""
    return Table(*(Column(name, overflow="fold") for name in columns), title=title, title_justify="left")


def one_line(text: str) -> str:
    """Returns the text with escapes in place of line ends, tabs and other characters that can't be printed."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def group_text(group: str | None) -> Text | str:
    """Returns a group's name for a table, or `no group` in another style."""
    return Text("no group", style="dim italic") if group is None else one_line(group)


def count_text(count: int, noun: str) -> str:
    """Returns a number of things in words, such as `1 fault` or `2 faults`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
