"""The driver's end of the connections to members, and of what starts these."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Mapping
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any, Protocol

from embedx.distribute.messages import Setup
from embedx.run.job import Job

_CLOSE_SECONDS = 0.5
"""The time that a member has to take what was sent to it before its connection is closed."""


class MemberLink:
    """A connection on which sending never waits, as the member at the other end may be stopped.

    A thread sends what is put, in order; `connection.wait` takes a link as it takes a connection.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._messages = queue.SimpleQueue[Any]()
        self._sender = threading.Thread(target=self._send, name="member-link", daemon=True)
        self._sender.start()

    def send(self, message: Any) -> None:
        """Puts a message; it is dropped if the member is gone."""
        self._messages.put(message)

    def recv(self) -> Any:
        """Waits for a message.

        Raises:
            EOFError: If the member is gone.
        """
        return self._connection.recv()

    def fileno(self) -> int:
        """Returns the descriptor of the connection."""
        return self._connection.fileno()

    def close(self) -> None:
        """Ends the connection, once what was put is sent, or the member does not take it."""
        self._messages.put(None)
        self._sender.join(_CLOSE_SECONDS)
        self._connection.close()

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            while (message := self._messages.get()) is not None:
                self._connection.send(message)


def wait_for(links: Mapping[str, MemberLink], seconds: float) -> list[tuple[str, MemberLink]]:
    """Waits at most so long, and returns the links that have a message, or whose member is gone."""
    ready: set[Any] = set(connection.wait(list(links.values()), seconds))  # type: ignore[arg-type]  # any with a fileno
    return [(name, link) for name, link in links.items() if link in ready]


class Engine(Protocol):
    """The part that starts the members, and watches them."""

    awaits_others: bool
    """True if other members may come even where none is left."""

    def start(self, job: Job, setup: Setup) -> None:
        """Starts the members."""

    def links(self) -> Mapping[str, MemberLink]:
        """Returns the connections to the members that live, by the members' names; some may come later."""

    def replace(self, name: str) -> str:
        """Starts another member in place of one that is gone, if that may help; returns how it ended, in words."""

    def forget(self, name: str) -> None:
        """Takes leave of a member that has ended as it should."""

    def close(self) -> None:
        """Ends the members at once."""
