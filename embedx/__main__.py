"""The entry point of `embedx` and `python -m embedx`: from the first signal handler to the exit code."""

import atexit
import contextlib
import os
import sys
from typing import NoReturn

from embedx.errors import WINDOWS, Interrupted
from embedx.system import signals


def main() -> NoReturn:
    """Runs the command line, and ends the process."""
    if sys.platform == "win32":
        print(f"error: {WINDOWS}", file=sys.stderr)
        sys.exit(2)
    _fill_standard_streams()
    signals.install()
    try:
        from embedx.cli.app import run

        code = run()
        signals.let_end(code)
    except Interrupted as interruption:
        signals.report(interruption.number)
        code = interruption.exit_code
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, AttributeError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    # Not sys.exit(): the interpreter would take two seconds to free, module by module, what the system frees at once.
    os._exit(code)


def _fill_standard_streams() -> None:
    """Opens the null device for closed standard streams, else the next opened file would get their output."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


if __name__ == "__main__":
    main()
