"""One run per store in a bucket: a hold that its owner renews, and that others take over once it is left behind.

No correctness hangs on it, as whatever is written there is written under a condition: two runs that both believed to
hold the store would compute some units twice, and each is committed once.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from embedx.errors import ConfigError, StoreError, StoreLockedError
from embedx.names import LOCK, PROBE
from embedx.paths import BucketPath
from embedx.store.format.object_folder import ObjectFolder
from embedx.system import objects
from embedx.system.passing import LaterError

HOLD_SECONDS = 60.0
"""The time after which a hold that was not renewed counts no more; a machine may be out of reach for as long."""
_RENEWED_EVERY = 15.0
_NO_VERSION = f'"{objects.EMPTY}"'
"""The version of no object."""
_TRIES = 3
"""The times that one object is created. Another run may remove it in between, but hardly twice."""


def check_bucket(place: BucketPath) -> None:
    """Checks that a store can be written to a place in a bucket, whose server creates no object a second time.

    Raises:
        ConfigError: If it can't, or there is no such bucket, no access to it, or no client for it.
        StoreError: If it can't be told now.
    """
    from embedx.system import remote

    scheme = place.url.partition("://")[0]
    remote.check_schemes({scheme: str(place)})
    if not objects.takes_conditions(scheme):
        raise ConfigError(
            f"--out {place}: the installed client of {scheme}:// can't create an object only where there is none, so "
            "that two runs could spoil one store; write to a folder and copy the store, or, if it is s3:// or gs://, "
            "update its package"
        )
    _check_conditions(str(place))


@functools.cache
def _check_conditions(place: str) -> None:
    url = f"{place}/{PROBE}"
    try:
        objects.stat(url)  # which gives up sooner where there is no such server
        ignored = [name for name, is_ignored in _CONDITIONS.items() if is_ignored(url)]
        objects.remove(url)
    except FileNotFoundError as error:
        raise ConfigError(f"--out {place}: there is no such bucket; make it, or correct the name") from error
    except PermissionError as error:
        text = f"--out {place}: {error.strerror}; a run writes, reads, lists and removes objects there"
        raise ConfigError(text) from error
    except OSError as error:
        is_absent = isinstance(error, LaterError) and error.errno != errno.EACCES
        text = f"--out {place}: can't be written ({error.strerror})"
        raise (StoreError(f"{text}; run the same command again") if is_absent else ConfigError(text)) from error
    if ignored:
        raise ConfigError(
            f"--out {place}: its server ignores the condition `{ignored[0]}`, so that two runs could spoil one store; "
            "use a server that knows it, or write to a folder and copy the store"
        )


def _creates_again(url: str) -> bool:
    return all(objects.put_new(url, b"", objects.EMPTY) for _ in range(_TRIES))


def _replaces_another(url: str) -> bool:
    return objects.put(url, b"", replacing=_NO_VERSION)


_CONDITIONS = {"If-None-Match: *": _creates_again, "If-Match": _replaces_another}
"""The functions that tell, of the URL of a probe, that its server ignores a condition."""


class BucketHold:
    """The hold of a store in a bucket, renewed by a thread.

    Args:
        root: The folder of the store.

    Raises:
        StoreLockedError: If another run holds the store; the message names it.
        StoreError: If that can't be told.
    """

    def __init__(self, root: ObjectFolder) -> None:
        self._root, self._url = root, root.url_of(LOCK)
        self._token = secrets.token_hex(8)
        self._count = 0
        self._is_lost = False
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._version = _NO_VERSION
        self._written = ""
        """The sha256 of what this run wrote last."""
        self._renewed = time.time()
        try:
            self._take()
        except OSError as error:
            raise StoreError(f"{root}: can't be held ({error.strerror})") from error
        self._thread = threading.Thread(target=self._keep, name="bucket-hold", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises a StoreError if another run has taken the store over, as this one was stopped for too long."""
        if abs(time.time() - self._renewed) > HOLD_SECONDS / 2:  # the thread may not have been woken up yet
            self._renew()
        if self._is_lost:
            raise StoreError(f"another run has taken {self._root} over meanwhile; run the same command again")

    def release(self) -> None:
        """Gives the store back."""
        self._over.set()
        self._thread.join()
        try:
            if not self._is_lost and objects.put(self._url, self._content(0.0), replacing=self._version):
                objects.remove(self._url)
        except OSError:  # it counts no more after its time
            pass

    def _take(self) -> None:
        while not self._create():
            there = objects.stat(self._url)
            if there is None:
                continue
            holder = _parsed(objects.read(self._url))
            if not self._is_left(holder, there):
                raise StoreLockedError(
                    f"{self._root} is held by another run (process {holder.get('owner', 'unknown')}); wait for it to "
                    f"end, or, if it was killed, {HOLD_SECONDS:.0f} seconds"
                )
            self._version = there.version or _NO_VERSION
            if self._replace():
                break
        self._learn_version()

    def _is_left(self, holder: dict[str, Any], there: objects.StatedObject) -> bool:
        """Tells whether a hold counts no more: its process, of this machine, is gone, or its time has passed."""
        process, seconds = holder.get("process"), holder.get("seconds", HOLD_SECONDS)
        if isinstance(process, list) and process[:2] == _process()[:2] and not _is_alive(process):
            return True
        url = f"{self._root.path}/{PROBE}"
        objects.put(url, self._token.encode())
        now = objects.stat(url)
        objects.remove(url)
        if now is None or now.modified is None or there.modified is None or not isinstance(seconds, int | float):
            return False
        return now.modified - there.modified > seconds

    def _keep(self) -> None:
        while not (self._is_lost or self._over.wait(_RENEWED_EVERY)):
            self._renew()

    def _renew(self) -> None:
        with self._lock, contextlib.suppress(OSError, StoreError):  # the next time will tell
            self._is_lost = self._is_lost or not self._is_kept()

    def _is_kept(self) -> bool:
        """Writes the hold again; returns False if another run has it, or may have had it."""
        while not self._replace():
            there = objects.stat(self._url)
            if there is None:  # such as by the run whose hold this one took over, as it ended
                if time.time() - self._renewed > HOLD_SECONDS or not self._create():
                    return False
                break
            if there.sha256 != self._written or there.version == self._version:
                return False
            self._version = there.version or _NO_VERSION  # it is this run's, which could not ask for its version then
        self._learn_version()
        return True

    def _create(self) -> bool:
        return self._write(lambda content, sha256: objects.put_new(self._url, content, sha256))

    def _replace(self) -> bool:
        return self._write(lambda content, sha256: objects.put(self._url, content, replacing=self._version))

    def _write(self, put: Callable[[bytes, str], bool]) -> bool:
        content, begun = self._content(HOLD_SECONDS), time.time()
        sha256 = hashlib.sha256(content).hexdigest()
        is_written = put(content, sha256)
        if is_written:
            self._written, self._renewed = sha256, begun
        return is_written

    def _learn_version(self) -> None:
        there = self._root.stat(LOCK)
        if there is not None and there.sha256 in (None, self._written):  # and not another run's already
            self._version = there.version or _NO_VERSION

    def _content(self, seconds: float) -> bytes:
        self._count += 1
        owner = f"{os.getpid()} on {os.uname().nodename}"
        facts = {"owner": owner, "process": _process(), "seconds": seconds, "run": self._token, "count": self._count}
        return json.dumps(facts).encode()


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _process() -> list[Any]:
    """Returns what tells this process from all others: the machine's start, the namespace, its number, its start."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return [boot, os.readlink("/proc/self/ns/pid"), os.getpid(), _start_of(os.getpid())]
    except OSError:
        return [None, secrets.token_hex(8), os.getpid(), None]


def _is_alive(process: list[Any]) -> bool:
    return len(process) > 3 and _start_of(process[2]) == process[3] is not None


def _start_of(pid: int) -> str | None:
    """Returns the time at which a process was started, in ticks since the machine's start; None if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
