"""The commands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer
from rich.markup import escape

from embedx.cli import backbones, extract, stores
from embedx.cli.output import STDERR
from embedx.errors import EmbedxError, Terminated

app = typer.Typer(
    name="embedx",
    help="Extract image embeddings: fast, resumable, every row tied to its input.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("extract")(extract.command)
app.command("info")(stores.info)
app.command("verify")(stores.verify)
app.command("backbones")(backbones.command)


def main() -> NoReturn:
    """Runs the command line and ends the process with the exit code that DESIGN.md §8 gives the outcome."""
    debug = "--debug" in sys.argv
    try:
        app(prog_name="embedx")
    except Terminated:
        code = _interrupted("terminated", 143)
    except KeyboardInterrupt:
        code = _interrupted("interrupted", 130)
    except EmbedxError as error:
        code = error.exit_code
        _report(str(error), error, debug=debug)
    except BrokenPipeError:
        # The reader of stdout has gone, as `head` does; the interpreter would complain when it flushes.
        sys.stdout = None
        code = 1
    except OSError as error:
        code = 1
        _report(f"{error.strerror or error}: {error.filename or 'no file named'}", error, debug=debug)
    except Exception as error:  # noqa: BLE001  (the boundary)
        code = 1
        _report(
            f"a fault of embedx itself: {type(error).__name__}: {error}\nrun again with --debug for the traceback, "
            "and report it",
            error,
            debug=debug,
        )
    else:
        code = 0
    sys.exit(code)


def _report(message: str, error: BaseException, *, debug: bool) -> None:
    if debug:
        STDERR.print_exception()
        for note in getattr(error, "__notes__", ()):
            STDERR.print(escape(note))
    STDERR.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)


def _interrupted(how: str, code: int) -> int:
    STDERR.print(f"{how}; what is committed stays, the same command goes on from there", soft_wrap=True)
    return code
