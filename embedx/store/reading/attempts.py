"""Starts a reading anew when another store took the place of the one that was being read."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from embedx.errors import StoreReplacedError

T = TypeVar("T")

PAUSES = (0.0, 0.1, 0.3, 1.0)
"""The seconds to wait before each further attempt."""


def start_anew(read: Callable[[], T]) -> T:
    """Calls a function that opens stores and reads them, again if one of them was replaced meanwhile.

    Raises:
        StoreReplacedError: If that happens time and again.
    """
    for pause in PAUSES:
        try:
            return read()
        except StoreReplacedError:
            time.sleep(pause)
    return read()
