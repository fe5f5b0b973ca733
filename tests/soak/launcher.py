"""Runs embedx's command line over and over, each time in a fork of one process that has imported everything.

It reads an order per line (JSON) and answers with two: "pid N", and later "code N". The fork server and the
resource tracker of a run are forks too, where Python would start an interpreter: as they import nothing, a run takes
tenths of a second and not seconds. All else is as in a process of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import json
import os
import signal
import sys
import tempfile
import warnings
from multiprocessing import resource_tracker, util
from typing import Any, NoReturn

import embedx.cli.app
import embedx.data.decoding.images
import embedx.data.loading.loaders
import embedx.run.extract
import embedx.run.up_to_date
import embedx.store.reading.verify
import embedx.store.writing.session
from embedx.__main__ import main

_FIRST_KEPT = 700
"""The descriptors from here on belong to the preloaded library."""


def fork_in_place_of_exec(path: bytes, arguments: list[str], descriptors: list[int]) -> int:
    """Runs the code behind `-c` in a fork that has just these descriptors, and returns its process id."""
    if child := os.fork():
        return child
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        kept = {0, 1, 2, *map(int, descriptors)}
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            if descriptor not in kept and descriptor < _FIRST_KEPT:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        resource_tracker._resource_tracker._fd = None  # type: ignore[attr-defined]
        exec(arguments[-1], {})
    except SystemExit:
        pass
    finally:
        os._exit(0)


def run(order: dict[str, Any]) -> NoReturn:
    """Becomes the run."""
    os.setsid()
    for number, place in enumerate((os.devnull, order["stdout"], order["stderr"])):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        descriptor = os.open(place, flags, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)  # sent to a run that hangs
    os.environ.update(order["environment"], SOAK_MAIN=str(os.getpid()))
    os.chdir(order["folder"])
    tempfile.tempdir = None
    ctypes.CDLL(None).soak_configure()
    util.spawnv_passfds = fork_in_place_of_exec  # type: ignore[assignment]
    if "SOAK_JOURNAL_SECONDS" in os.environ:
        seconds = float(os.environ["SOAK_JOURNAL_SECONDS"])
        embedx.store.writing.session.JOURNAL_SECONDS = seconds  # type: ignore[attr-defined]
    sys.argv = ["embedx", *order["arguments"]]
    main()


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)  # of forks: the threads of the libraries wait, and hold no lock
    gc.collect()
    gc.freeze()
    print("ready 0", flush=True)
    for line in sys.stdin:
        if not (child := os.fork()):
            try:
                run(json.loads(line))
            finally:
                os._exit(99)
        print("pid", child, flush=True)
        print("code", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
