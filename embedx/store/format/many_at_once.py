"""Reads or writes several files of a store in a bucket at once, as each takes the time of its requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from embedx.store.format.store_folder import StoreFolder

S = TypeVar("S")
T = TypeVar("T")

TABLES_AT_ONCE: Final = 16
SHARDS_AT_ONCE: Final = 6


def many_at_once(
    folder: Path | StoreFolder, act: Callable[[S], T], items: Iterable[S], at_once: int = TABLES_AT_ONCE
) -> Iterator[T]:
    """Yields the result of a function for each item, in order; threads call it ahead if the store is in a bucket.

    Args:
        folder: The folder of the store.
        act: The function that reads or writes a file, or a part of one.
        items: The items that it takes.
        at_once: The number of calls at the same time.
    """
    if isinstance(folder, Path) or not folder.is_remote:
        yield from map(act, items)
        return
    waiting: deque[Future[T]] = deque()
    threads = ThreadPoolExecutor(at_once)
    try:
        for item in items:
            waiting.append(threads.submit(act, item))
            if len(waiting) > at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)
