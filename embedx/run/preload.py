"""What the fork server imports: all that its children need. It is for the server alone, whose errors it filters."""

import atexit
import os
import sys
import traceback
from types import TracebackType

from embedx.system.torch_imports import import_torchvision

import_torchvision()

import embedx.data.decoding.images  # noqa: E402
import embedx.data.loading.loaders  # noqa: E402
import embedx.store.writing.process  # noqa: E402, F401

_SERVER = os.getpid()


def _end_at_once() -> None:
    """Ends the server when it has no parent any more; the interpreter would take seconds to free what it imported."""
    if os.getpid() == _SERVER:
        os._exit(0)


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Shows an error with which a child could not begin, unless it is that its parent is gone.

    The child sees that as a pipe that has ended, or as a semaphore that is not there, both in multiprocessing's code.
    """
    *_, place = traceback.extract_tb(trace) or [None]
    in_multiprocessing = place is not None and "multiprocessing" in place.filename
    if not (in_multiprocessing and isinstance(error, EOFError | OSError)):
        sys.__excepthook__(kind, error, trace)


atexit.register(_end_at_once)
sys.excepthook = _show
