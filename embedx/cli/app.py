"""The commands, all of them, and what surrounds every one."""

from __future__ import annotations

import inspect
import os
import re
from importlib.metadata import version
from typing import Annotated

import typer

from embedx.cli import (
    backbones,
    compare,
    duplicates,
    export,
    extract,
    help,
    index,
    info,
    layers,
    probe,
    repair,
    report,
    search,
    verify,
)
from embedx.cli.completion import whole_words_in_bash
from embedx.cli.failure import tell
from embedx.cli.output import STDERR, data_alone_on_stdout, print_line, telling_what_was_fetched
from embedx.cli.usage import CommandWithPage, GroupWithPage

app = typer.Typer(
    name="embedx",
    cls=GroupWithPage,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (  # in the order of the help page
    extract,
    info,
    verify,
    repair,
    compare,
    probe,
    search,
    index,
    duplicates,
    report,
    export,
    backbones,
    layers,
    help,
):
    paragraphs = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.getdoc(module.command) or "")  # the terminal breaks the lines
    name = module.__name__.rpartition(".")[2]
    function = module.command
    if module is not extract:
        function = telling_what_was_fetched()(function)
    if module is not help:  # whose pager takes stdout
        function = data_alone_on_stdout()(function)
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
    STDERR.as_json = STDERR.quiet = False
    try:
        with whole_words_in_bash():
            code = app(prog_name="embedx", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except SystemExit as exit_of_app:
        return exit_of_app.code if isinstance(exit_of_app.code, int) else 0
    except Exception as error:  # noqa: BLE001  (the boundary)
        return tell(error)
