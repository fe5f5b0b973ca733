"""The module that the fork server imports, so that its children start with everything loaded.

Import it nowhere else: it replaces the process's exit and its display of errors.
"""

import atexit
import multiprocessing
import os
import signal
import sys
import traceback
from multiprocessing import util
from types import TracebackType

from embedx.system.torch_imports import import_torchvision

import_torchvision()

import embedx.data.decoding.images  # noqa: E402
import embedx.data.loading.loaders  # noqa: E402
import embedx.store.writing.process  # noqa: E402, F401
from embedx.system.processes import Child  # noqa: E402

_SERVER = os.getpid()


def _end_at_once() -> None:
    """Ends the server at once; the interpreter's own way out takes seconds to free the imported modules."""
    if os.getpid() == _SERVER:
        os._exit(0)


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Shows an error, unless it is multiprocessing's about a lost pipe or semaphore: then the parent has ended."""
    *_, place = traceback.extract_tb(trace) or [None]
    in_multiprocessing = place is not None and "multiprocessing" in place.filename
    if not (in_multiprocessing and isinstance(error, EOFError | OSError)):
        sys.__excepthook__(kind, error, trace)


def _unblock(_: object) -> None:
    """Unblocks, in a child that is not embedx's but of the program that uses it, the signals that the server blocks."""
    if not isinstance(multiprocessing.current_process(), Child):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM])


util.register_after_fork(_unblock, _unblock)
atexit.register(_end_at_once)
sys.excepthook = _show
