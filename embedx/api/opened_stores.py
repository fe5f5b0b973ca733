"""The stores of a call, opened by their paths, once more if another store takes the place of one meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from embedx.heartbeat import Heartbeat
from embedx.paths import BucketPath
from embedx.store.reading.attempts import start_anew
from embedx.store.reading.reader import Store

Location = str | os.PathLike[str] | BucketPath
R = TypeVar("R")


def opened(store: Location | Store) -> Store:
    """Returns a store that is open already, or opens the one at a place; errors as by `Store.open`."""
    if isinstance(store, Store | str | BucketPath):
        return store if isinstance(store, Store) else Store.open(store)
    return Store.open(Path(store))


def with_stores(
    given: Sequence[Location | Store], work: Callable[[list[Store]], R], heartbeat: Heartbeat, done: str | None
) -> R:
    """Returns what some work gives for stores; it begins anew if one that is given by its path is replaced.

    Args:
        given: The stores, or their paths.
        work: The function that is called with the open stores.
        heartbeat: The receiver of the notice that a store is not complete.
        done: What is done with its rows, as in `compared`, for that notice; None gives none.

    Raises:
        StoreReplacedError: If another store takes the place of one that is given open.
        StoreError: If a path leads to no store, or what `work` raises.
    """

    def attempt() -> R:
        stores = list(map(opened, given))
        for store in stores:
            if done is not None and not store.complete:
                told = f"{store.path} is not complete: the rows committed so far are {done}"
                heartbeat.console.print(told, soft_wrap=True, markup=False, highlight=False)
        return work(stores)

    return attempt() if all(isinstance(each, Store) for each in given) else start_anew(attempt)
