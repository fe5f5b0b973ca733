"""The progress of a function, as Python programs ask for it."""

from __future__ import annotations

from embedx.console import NoticeConsole
from embedx.heartbeat import Heartbeat


def heartbeat_of(progress: bool) -> Heartbeat:
    """Returns the receiver of progress, on stderr or in a notebook's cell; it is silent unless that is wanted."""
    console = NoticeConsole()
    console.quiet = not progress
    return Heartbeat(console)
