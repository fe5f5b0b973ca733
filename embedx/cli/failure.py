"""The end of a command by an error: its message and its exit code."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import typer
from rich.text import Text

from embedx.cli.foreign_errors import words_for
from embedx.cli.output import STDERR
from embedx.credentials import credentials_hidden
from embedx.errors import ConfigError, DamagedUnitsError, EmbedxError, Interrupted
from embedx.system import signals
from embedx.terminal import one_line, traceback_lines

_UsageError: Any = typer.BadParameter.__base__
"""The class of all errors in the words of a command line; typer has no public name for it."""


@contextlib.contextmanager
def told_at_once() -> Iterator[None]:
    """Tells an error or a signal within the context, before what surrounds it says that the command ends.

    Raises:
        typer.Exit: After an error, with its exit code.
    """
    try:
        yield
    except Interrupted as interruption:
        signals.report(interruption.number)
        raise
    except Exception as error:
        raise typer.Exit(tell(error)) from error


def tell(error: Exception) -> int:
    """Prints an error's message on stderr, even where that is quiet; returns the exit code, which errors.py lists."""
    quiet, STDERR.quiet = STDERR.quiet, False
    if STDERR.show_tracebacks:
        for line in traceback_lines(error):
            STDERR.print(line, soft_wrap=True)
    code, lines = _verdict(error)
    for number, line in enumerate(one_line(credentials_hidden(line)) for line in lines):
        STDERR.print(line if number else Text.assemble(("error:", "bold red"), " ", line), soft_wrap=True)
    STDERR.quiet = STDERR.quiet or quiet
    return code


def _verdict(error: Exception) -> tuple[int, list[str]]:
    """Returns the exit code of an error, and its message, line by line."""
    if isinstance(error, ConfigError):
        return error.exit_code, error.faults
    if isinstance(error, DamagedUnitsError):
        return error.exit_code, list(error.lines)
    if isinstance(error, EmbedxError):
        return error.exit_code, [str(error)]
    if isinstance(error, _UsageError):
        command = error.ctx.command_path if error.ctx else "embedx"
        return error.exit_code, [error.format_message(), f"`{command} --help` lists the options"]
    if isinstance(error, FileNotFoundError) and _has_lost_its_folder():
        return 1, ["the working directory is gone (removed, or unmounted); cd into one that is there, and try again"]
    if words := words_for(error):
        return 1, [words]
    if isinstance(error, OSError):
        return 1, [": ".join(str(part) for part in (error.strerror or error, error.filename) if part)]
    return 1, [
        f"a fault of embedx itself: {type(error).__name__}: {error}",
        "run the command again with --debug, and report the traceback",
    ]


def _has_lost_its_folder() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False
