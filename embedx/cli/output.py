"""The one console, and the two streams: data to stdout, talk to stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from embedx.errors import EmbedxError


class Talk(Console):
    """The console of stderr. A reader that goes away ends the talk, and not the run."""

    show_tracebacks = False
    """Whether an error is shown with its traceback."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints, if that can be done: a full disk under the log is like a reader that has gone."""
        try:
            super().print(*objects, **options)
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Sends all that is still to come nowhere; Rich itself would end the process, and close stdout."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class Data(Console):
    """The console of stdout."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints what is there for people.

        Raises:
            EmbedxError: If it can't be written.
        """
        with _writing_stdout():
            super().print(*objects, **options)


@contextlib.contextmanager
def _writing_stdout() -> Iterator[None]:
    """Raises an EmbedxError that names stdout, unless it is that its reader has gone."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise EmbedxError(f"stdout can't be written ({error.strerror}); all else is done") from error


# No markup: a name that looks like it is a name.
STDERR = Talk(stderr=True, highlight=False, markup=False, emoji=False)
"""Notices, progress and errors."""
STDOUT = Data(highlight=False, markup=False, emoji=False)
"""Tables for people; plain data is printed by `print_line` and `print_json`, never wrapped or coloured."""


def _show_tracebacks(wanted: bool) -> bool:
    STDERR.show_tracebacks = wanted
    return wanted


DebugOption = Annotated[
    bool, typer.Option("--debug", help="Show tracebacks.", callback=_show_tracebacks, is_eager=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_line(text: str) -> None:
    """Prints one line of data.

    Raises:
        BrokenPipeError: If its reader has gone.
        EmbedxError: If it can't be written for another reason.
    """
    with _writing_stdout():
        print(text, file=sys.stdout, flush=True)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Prints one JSON value."""
    print_line(json.dumps(value, indent=indent))


def facts_table(facts: Mapping[str, str]) -> Table:
    """Names and values for people; a value that is too long for the line goes on in the next one."""
    table = Table(Column(style="bold"), Column(overflow="fold"), show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(name, value)
    return table


def numbers_table(*columns: str, title: str | None = None) -> Table:
    """A table with these columns, of names and numbers per split and group."""
    return Table(*(Column(name, overflow="fold") for name in columns), title=title, title_justify="left")


def one_line(text: str) -> str:
    """The text with line ends, tabs and all else that can't be printed written as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def group_text(group: str | None) -> Text | str:
    """A group's name for a table, set apart where there is none."""
    return Text("no group", style="dim italic") if group is None else one_line(group)


def count_text(count: int, noun: str) -> str:
    """A number of things, as `1 fault` or `2 faults`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
