"""The commands, and the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import inspect
import os
import re

import typer
from rich.text import Text

from embedx.cli import backbones, compare, extract, info, layers, probe, verify
from embedx.cli.foreign_errors import words_for
from embedx.cli.output import STDERR, data_alone_on_stdout
from embedx.errors import EmbedxError

app = typer.Typer(
    name="embedx",
    help="Extract image embeddings: fast, resumable, every row tied to its input.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (extract, info, verify, compare, probe, backbones, layers):
    paragraphs = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.getdoc(module.command) or "")  # the terminal breaks the lines
    app.command(module.__name__.rpartition(".")[2], help=paragraphs)(data_alone_on_stdout()(module.command))


def run() -> int:
    """Runs the command line and returns its exit code, which errors.py lists.

    `Interrupted` alone is caught further out, by `embedx.__main__`, as a signal may also arrive in here.
    """
    # Before a command imports torch: threads that spin while they wait would steal the decoders' cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(prog_name="embedx")
    except SystemExit as exit_of_app:  # typer ends every command with it, good or bad
        return exit_of_app.code if isinstance(exit_of_app.code, int) else 0
    except EmbedxError as error:
        _report(str(error), error)
        return error.exit_code
    except OSError as error:
        _report(": ".join(str(part) for part in (error.strerror or error, error.filename) if part), error)
        return 1
    except Exception as error:  # noqa: BLE001  (the boundary)
        own_fault = (
            f"a fault of embedx itself: {type(error).__name__}: {error}\n"
            "run the command again with --debug, and report the traceback"
        )
        _report(words_for(error) or own_fault, error)
        return 1
    return 0


def _report(message: str, error: BaseException) -> None:
    STDERR.quiet = False
    if STDERR.show_tracebacks:
        STDERR.print_exception()
        for note in getattr(error, "__notes__", ()):
            STDERR.print(note)
    STDERR.print(Text.assemble(("error:", "bold red"), " ", message), soft_wrap=True)
