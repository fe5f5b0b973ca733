"""How members find the driver, and those of a launcher by a file beside the store, which they all have to see.

The file has the driver's addresses and a key, without which nobody can speak to it; only its owner can read it. At the
end it says how the run ended, for processes that come too late.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import NamedTuple

from embedx.errors import ConfigError, MemberError, output_error
from embedx.paths import BucketPath, StorePath
from embedx.system import objects

_JOB = ".embedx-job-"
_BACKLOG = 1024
_DOORS = 8
"""The threads that let members in, so that a stranger who connects and says nothing keeps none out."""
_REST_SECONDS = 0.05
"""The rest of such a thread after a failure, which may be that of the machine, such as too many open files."""
_PATIENCE_SECONDS = 600.0
"""The time that a process of a launcher waits for the driver's file."""
_LOOK_SECONDS = 0.5
_KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""The seconds of silence before a machine is asked whether it is there, those between questions, and their number."""


class Meeting(NamedTuple):
    """The way to the driver."""

    host: str
    addresses: list[str]
    port: int
    key: str
    """The key of the connections, as hex digits; empty once the run has ended."""
    ended: int | None = None
    """The exit code of the run; None as long as it goes on."""


class Hello(NamedTuple):
    """The first message of a member that comes over the network."""

    version: str
    host: str
    device: str
    threads: int | None
    workers: int | None


class MeetingPlace:
    """The file for a launcher's run, as the driver sees it.

    Args:
        out: The folder of the store.
        job: The text that tells the launcher's run from all others.
    """

    def __init__(self, out: StorePath, job: str) -> None:
        self._out = out
        self._place = meeting_place(out, job)

    def announce(self, meeting: Meeting) -> None:
        """Writes the file, and removes those of earlier runs.

        Raises:
            ConfigError, StoreError: If it can't be written.
        """
        try:
            if isinstance(self._out, Path):
                self._out.parent.mkdir(parents=True, exist_ok=True)
                for path in self._out.parent.glob(f".{self._out.name}{_JOB}*"):
                    path.unlink(missing_ok=True)
            else:
                for name in objects.names(str(self._out.parent)):
                    if name.startswith(f".{self._out.name}{_JOB}"):
                        objects.remove(str(self._out.parent / name))
            self._write(meeting)
        except OSError as error:
            raise output_error(self._out, "can't be made", error, is_store=False) from error

    def leave_word(self, exit_code: int) -> None:
        """Tells how the run has ended to those who come late."""
        with contextlib.suppress(OSError):
            self._write(Meeting(socket.gethostname(), [], 0, "", exit_code))

    def _write(self, meeting: Meeting) -> None:
        if isinstance(self._place, BucketPath):
            objects.put(str(self._place), json.dumps(meeting._asdict()).encode())
            return
        temporary = self._place.with_name(f"{self._place.name}.new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w") as file:
            json.dump(meeting._asdict(), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._place)


def meeting_place(out: StorePath, job: str) -> StorePath:
    """Returns the place of the file for a launcher's run that writes the store at `out`."""
    return out.parent / f".{out.name}{_JOB}{hashlib.sha256(job.encode()).hexdigest()[:16]}"


class Reception:
    """The driver's side: lets the members in."""

    def __init__(self) -> None:
        key = secrets.token_bytes(32)
        self._listener = Listener(("", 0), backlog=_BACKLOG, authkey=key)
        self._arrived: list[tuple[Hello, Connection]] = []
        self._lock = threading.Lock()
        self._is_closed = False
        for number in range(_DOORS):
            threading.Thread(target=self._let_in, name=f"door-{number}", daemon=True).start()
        host = socket.gethostname()
        self.meeting = Meeting(host, _addresses(host), self._listener.address[1], key.hex())
        """The way in, which a member has to know."""

    def arrivals(self) -> list[tuple[Hello, Connection]]:
        """Takes the members that have come since the last call."""
        with self._lock:
            arrived, self._arrived = self._arrived, []
        return arrived

    def close(self) -> None:
        """Lets nobody in any more."""
        self._is_closed = True
        self._listener.close()

    def _let_in(self) -> None:
        while not self._is_closed:
            try:
                link = self._listener.accept()
                _keep_alive(link)
                hello = link.recv()
            except Exception:  # noqa: BLE001  (a stranger may send anything; it is let go)
                time.sleep(_REST_SECONDS)
                continue
            if isinstance(hello, Hello):
                with self._lock:
                    self._arrived.append((hello, link))


def find_driver(out: StorePath, job: str, tell: Callable[[str], None]) -> Meeting:
    """Waits for the driver's file.

    Raises:
        MemberError: If there is none for ten minutes.
    """
    place, end = meeting_place(out, job), time.monotonic() + _PATIENCE_SECONDS
    tell("waiting for the driver")
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return Meeting(**json.loads(_read(place)))
        time.sleep(_LOOK_SECONDS)
    raise MemberError(
        f"no driver (rank 0) of this job has come to {out.parent} within {_PATIENCE_SECONDS / 60:.0f} minutes; --out "
        "has to be a folder or bucket that all machines see, and the same for all"
    )


def _read(place: StorePath) -> bytes:
    if isinstance(place, BucketPath):
        return objects.read(str(place))
    os.listdir(place.parent)  # so that a network file system looks again
    return place.read_bytes()


def call_driver(meeting: Meeting) -> Connection:
    """Connects to the driver.

    Raises:
        MemberError: If it can't be reached by any of its addresses.
    """
    addresses = meeting.addresses
    if meeting.host == socket.gethostname():
        addresses = ["127.0.0.1", *addresses]
    for address in addresses:
        with contextlib.suppress(OSError, EOFError, AuthenticationError):
            link = Client((address, meeting.port), authkey=bytes.fromhex(meeting.key))
            _keep_alive(link)
            return link
    raise MemberError(
        f"{socket.gethostname()} can't reach the driver on {meeting.host} (tried {', '.join(addresses)}, port "
        f"{meeting.port}); let the machines of a job connect to one another"
    )


def _keep_alive(link: Connection) -> None:
    """Lets a connection end where the other machine is gone without a word, as at a loss of power."""
    with socket.socket(fileno=os.dup(link.fileno())) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE.items():
            if hasattr(socket, option):  # macOS lacks the first
                own.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _addresses(host: str) -> list[str]:
    """Returns the name of this machine, and the addresses that it is known by."""
    try:
        known = [str(info[4][0]) for info in socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)]
    except OSError:
        known = []
    return list(dict.fromkeys([host, *known]))


def check_version(hello: Hello, version: str) -> None:
    """Checks that a member runs this version of embedx.

    Raises:
        ConfigError: If it runs another one.
    """
    if hello.version != version:
        raise ConfigError(
            f"the member on {hello.host} runs embedx {hello.version}, and the driver {version}; install one version "
            "on all machines"
        )
