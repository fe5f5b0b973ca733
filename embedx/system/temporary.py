"""The temporary folder of a run, which a later run removes if this one is killed."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from multiprocessing.util import Finalize

_PREFIX = "embedx-run-"
_NAME = re.compile(_PREFIX + "[a-z0-9_]{8}")
_LOCK = "in-use"
_WITHOUT_LOCKS = "can't be locked"
"""The text in a lock's file that its run could not lock; another run might be able to, and must not."""
_LONGEST = 50
"""The bytes of the path in which it is made; a socket's whole path in it has at most 108 on Linux, and 104 on macOS."""

_AFTER_SOCKETS = -200
"""The priority at the end of the process; multiprocessing removes its sockets' folder with -100, and has to find it."""


@functools.cache
def run_folder() -> str:
    """Makes the folder of this process's run once, and clears away those of runs that were killed.

    It has a lock that ends with the process; multiprocessing keeps its sockets in it.
    """
    import loky  # noqa: F401  (which gives semaphores the process's id as a name)

    base = clear_killed_runs()
    while True:
        folder = tempfile.mkdtemp(prefix=_PREFIX, dir=base)
        with contextlib.suppress(FileNotFoundError):  # another run has taken it for abandoned before it was locked
            _hold(folder)
            Finalize(None, _remove, (folder,), exitpriority=_AFTER_SOCKETS)
            return folder


def _hold(folder: str) -> None:
    """Locks the folder for the life of this process.

    Raises:
        FileNotFoundError: If another process has removed it meanwhile.
    """
    path = os.path.join(folder, _LOCK)
    held = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)  # waits for one that clears it away
        said = str(os.getpid())
    except OSError:
        said = _WITHOUT_LOCKS
    with contextlib.suppress(OSError):
        os.write(held, said.encode())
    os.stat(path)


@contextlib.contextmanager
def sockets_in_run_folder() -> Iterator[None]:
    """Has multiprocessing make the folder of its sockets in the run's."""
    before = tempfile.tempdir
    folder = run_folder()
    tempfile.tempdir = folder
    try:
        yield
    finally:
        tempfile.tempdir = before


def clear_killed_runs() -> str:
    """Removes the folders of this user's runs whose lock nobody holds; returns the folder in which they were."""
    base = tempfile.gettempdir()
    if len(os.fsencode(base)) > _LONGEST:
        base = "/tmp"
    with contextlib.suppress(OSError), os.scandir(base) as entries:
        for entry in entries:
            if _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    _clear_one(entry.path)
    return base


def _clear_one(folder: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(folder)  # if its run was killed before it was locked, or after all else was removed
        return
    lock = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if os.fstat(lock).st_uid == os.getuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            said = os.read(lock, 20).decode("ascii", "replace")
            if said != _WITHOUT_LOCKS:
                _free_shared_memory(said)
                _remove(folder)
    finally:
        os.close(lock)


def _remove(folder: str) -> None:
    """Removes a run's folder; the lock stays as long as something else does, so that the next run finds both."""
    inner = f"{glob.escape(folder)}/*/"
    for sockets in glob.glob(inner):
        shutil.rmtree(sockets, ignore_errors=True)
    if not glob.glob(inner):
        shutil.rmtree(folder, ignore_errors=True)


def _free_shared_memory(pid: str) -> None:
    """Removes the semaphores that a killed process has left, if its tracker of resources was killed with it.

    Other memory is nameless but for a moment, in which the process may have been killed.
    """
    if pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
        for name in (f"sem.loky-{pid}-*", f"pym-{pid}-*", f"torch_{pid}_*"):
            for path in glob.glob(f"/dev/shm/{name}"):
                with contextlib.suppress(OSError):
                    os.unlink(path)
