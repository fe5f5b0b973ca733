"""The two streams: data goes to stdout, and notices, progress and errors go to stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from embedx.console import GuardedConsole, NoticeConsole
from embedx.errors import EmbedxError
from embedx.heartbeat import event_line
from embedx.store.format.fetched import OF_ALL_STORES
from embedx.terminal import guard_stderr, one_line
from embedx.values import size_text


class StderrConsole(NoticeConsole):
    """The console of stderr, for people or, a JSON object a line, for programs."""

    show_tracebacks = False
    """True if errors are shown with their tracebacks."""
    as_json = False
    """True if each message is one JSON object."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints, or turns quiet where stderr can't be written."""
        if self.as_json and not self.quiet:
            with self.capture() as capture:
                super().print(*objects, **options)
            self.out(event_line("message", text=Text.from_ansi(capture.get()).plain.rstrip()), highlight=False)
            return
        super().print(*objects, **options)

    def out(self, *objects: Any, **options: Any) -> None:
        """Writes a line as it is, or turns quiet where stderr can't be written; Rich's own would call `print`."""
        try:
            self.file.write(" ".join(map(str, objects)) + "\n")
            self.file.flush()
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Sends all further output to the null device, that of libraries too."""
        super().on_broken_pipe()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class StdoutConsole(GuardedConsole):
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
    stdout, stderr = sys.stdout, sys.stderr  # there is none where its descriptor was closed
    encoding = stdout.encoding if stdout else "utf-8"
    data = os.fdopen(os.dup(1), "w", encoding=encoding, errors="backslashreplace")
    os.dup2(2, 1)
    STDERR.file = stderr
    guard_stderr()
    STDOUT.file, sys.stdout = data, sys.stderr
    try:
        yield
    finally:
        STDERR.file = STDOUT.file = None  # type: ignore[assignment]  # Rich takes None for that of sys
        sys.stdout, sys.stderr = stdout, stderr
        os.dup2(data.fileno(), 1)
        with contextlib.suppress(OSError):  # each print flushes, and has told the error
            data.close()


@contextlib.contextmanager
def telling_what_was_fetched() -> Iterator[None]:
    """Tells at the end how much was fetched of stores in buckets, if anything was."""
    OF_ALL_STORES.clear()
    try:
        yield
    finally:
        fetched = OF_ALL_STORES.sum()
        if fetched.bytes:
            requests = f"{fetched.requests:,} request{'' if fetched.requests == 1 else 's'}"
            STDERR.print(f"fetched {size_text(fetched.bytes)} in {requests}", soft_wrap=True, highlight=False)


@contextlib.contextmanager
def _writing_stdout() -> Iterator[None]:
    """Turns an error of writing into an EmbedxError that names stdout; a BrokenPipeError passes."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise EmbedxError(f"stdout can't be written ({error.strerror}); everything else is done") from error


STDERR = StderrConsole()
"""The console for notices, progress and errors."""
STDOUT = StdoutConsole()
"""The console for tables; `print_line` and `print_json` print plain data, never wrapped or coloured."""


def print_line(*fields: str) -> None:
    """Prints one line of data: fields, with tabs between them, and with escapes for their controls.

    Raises:
        BrokenPipeError: If the reader of stdout has gone.
        EmbedxError: If stdout can't be written for another reason.
    """
    with _writing_stdout():
        print(*map(one_line, fields), sep="\t", file=STDOUT.file, flush=True)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Prints one JSON value, over several lines or (`indent=None`) in one."""
    with _writing_stdout():
        print(json.dumps(value, indent=indent), file=STDOUT.file, flush=True)


def facts_table(facts: Mapping[str, str | list[str]]) -> Table:
    """Returns a table of names and values for people, of one or several lines; long lines are wrapped."""
    table = Table(Column(style="bold"), Column(overflow="fold"), show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(name, value if isinstance(value, str) else Group(*value))
    return table


def numbers_table(*columns: str, title: str | None = None) -> Table:
    """Returns an empty table with these columns, for names and numbers."""
    return Table(*(Column(name, overflow="fold") for name in columns), title=title, title_justify="left")


def group_text(group: str | None) -> Text | str:
    """Returns a group's name for a table, or `no group` in another style."""
    return Text("no group", style="dim italic") if group is None else group
