"""Chooses the inputs without a row that a run tries again by itself."""

from __future__ import annotations

from embedx.data.loading.circumstances import deserves_another_try
from embedx.store.format.index import UNAVAILABLE


def is_tried_again(status: str, reason: str | None) -> bool:
    """Tells whether a run tries an input again, whose status and reason an earlier one has stored.

    An unavailable one is tried by every run, and one that was rejected for time, memory or a crash by one more.
    """
    return status == UNAVAILABLE or deserves_another_try(reason)
