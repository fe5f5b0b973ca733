"""The commands, and the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import inspect
import os
import re
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.text import Text

from embedx.cli import backbones, compare, extract, help, info, layers, probe, repair, verify
from embedx.cli.completion import whole_words_in_bash
from embedx.cli.foreign_errors import words_for
from embedx.cli.output import STDERR, data_alone_on_stdout, print_line
from embedx.cli.usage import CommandWithPage, GroupWithPage
from embedx.credentials import credentials_hidden
from embedx.errors import ConfigError, DamagedUnitsError, EmbedxError
from embedx.terminal import one_line, traceback_lines

_UsageError: Any = typer.BadParameter.__base__
"""The class of all errors in the words of a command line; typer has no public name for it."""

app = typer.Typer(
    name="embedx",
    cls=GroupWithPage,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (extract, info, verify, repair, compare, probe, backbones, layers, help):
    paragraphs = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.getdoc(module.command) or "")  # the terminal breaks the lines
    name = module.__name__.rpartition(".")[2]
    function = module.command if module is help else data_alone_on_stdout()(module.command)  # a pager takes stdout
    app.command(name, cls=CommandWithPage, help=paragraphs, epilog=module.EXAMPLES)(function)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_line(f"embedx {version('embedx')}")
        raise typer.Exit


@app.callback(help="Extract image embeddings: fast, resumable, every row tied to its input.")
def program(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Prints the help page if there is no command."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def run() -> int:
    """Runs the command line and returns its exit code, which errors.py lists.

    `Interrupted` alone is caught further out, by `embedx.__main__`, as a signal may also arrive in here.
    """
    # Before a command imports torch: threads that spin while they wait would steal the decoders' cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    STDERR.as_json = False
    try:
        with whole_words_in_bash():
            code = app(prog_name="embedx", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except SystemExit as exit_of_app:
        return exit_of_app.code if isinstance(exit_of_app.code, int) else 0
    except Exception as error:  # noqa: BLE001  (the boundary)
        STDERR.quiet = False
        if STDERR.show_tracebacks:
            for line in traceback_lines(error):
                STDERR.print(line, soft_wrap=True)
        code, lines = _verdict(error)
        for number, line in enumerate(one_line(credentials_hidden(line)) for line in lines):
            STDERR.print(line if number else Text.assemble(("error:", "bold red"), " ", line), soft_wrap=True)
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
