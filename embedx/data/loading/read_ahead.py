"""Reads a worker's inputs from afar before it decodes them: many at a time, in order, within bounds of memory.

    expect   takes the inputs to come, in order, and cuts them into reads
    threads  make the reads, in order, while fewer than so many are in flight and their bytes fit into MOST_HELD
    take     waits for one input; where its read told nothing of it, it is read alone now

An input has the bytes, or the reason, that it has where it is read alone. Local files have no part in this.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from embedx.data.loading.fetches import Fetch, UnreadError, end_of, is_part_of_run, neighbours
from embedx.data.loading.isolation import RunningTime
from embedx.data.loading.orders import Order
from embedx.data.loading.shared_blocks import BLOCK, SharedBlocks
from embedx.values import MOST_READS

MOST_HELD = 128 << 20
"""The most bytes that a worker holds ahead or has in flight, beside one input whose turn it is."""
_SMALLEST_ROOM = 1 << 20
"""The bytes that are kept, at least, for an input of unknown size; else twice those of the largest so far."""
_FIRST_READS = 8
"""The number of reads in flight until latency and decoding have been measured."""
_IDLE_SECONDS = 5.0
"""The time after which a thread that has nothing to read ends."""
_SMOOTHING = 0.1
"""The weight of a new measurement in the running means."""


class _Pace(NamedTuple):
    """The measurements from which the number of reads follows."""

    latency: float = 0.0
    """The seconds of a read, on average; 0 until there was one."""
    decoding: float = 0.0
    """The seconds from one input to the next without the waiting, on average; 0 until there was one."""

    def reads(self) -> int:
        """Returns twice the number of inputs that are decoded during a read."""
        if not (self.latency and self.decoding):
            return _FIRST_READS
        return min(MOST_READS, int(2 * self.latency / self.decoding) + 1)


class ReadAhead:
    """Reads inputs at URLs by threads; there are none while there is nothing to read.

    Args:
        reads: The number of reads in flight; None follows the latency that is measured.
        timeout: The seconds of waiting after which an input is given up.
        most: The largest number of bytes of an input.
        blocks: The blocks of files that the workers share, if they do.
    """

    def __init__(self, reads: int | None, timeout: float, most: int, blocks: SharedBlocks | None = None) -> None:
        self._reads = reads
        self._timeout = timeout
        self._most = most
        self._blocks = blocks
        self._arrived = threading.Condition()
        """The lock of all that follows; it is notified of each read that ends."""
        self._waiting: deque[Fetch] = deque()
        self._in_flight: list[Fetch] = []
        self._by_row: dict[int, Fetch] = {}
        self._begun = queue.SimpleQueue[Fetch]()
        """The reads that are begun and have no thread yet."""
        self._idle = 0
        """The number of threads that will find nothing there."""
        self._held = 0
        self._largest = 0
        self._pace = _Pace()
        self._clock = RunningTime(timeout)
        self._waited = 0.0
        """The seconds of waiting so far; an input's time is what of them falls into its read."""
        self._left: float | None = None
        """The time at which the last input of the batch was handed over."""

    def expects(self, row: int) -> bool:
        """Tells whether a row's input is among those to come."""
        return row in self._by_row

    def expect(self, orders: Iterable[Order], is_ours: Callable[[Order], bool] = lambda order: True) -> None:
        """Takes the inputs to come, in order, as far as they are to be read ahead; the bytes of others are dropped."""
        wanted = {order.row: order for order in orders}
        with self._arrived:
            for row in self._by_row.keys() - wanted.keys():
                self._drop(row)
            self._waiting = deque(fetch for fetch in self._waiting if self._is_wanted(fetch))
            new = (order for row, order in wanted.items() if row not in self._by_row and is_ours(order))
            for some in neighbours(new, self._most):
                self._queue(some)
            self._left = None
            self._start()

    def take(self, order: Order, tick: Callable[[], None]) -> bytes:
        """Returns the bytes of an input once they are there; calls `tick` several times a second while it waits.

        Raises:
            RejectedInputError: If it can't be read.
            UnreadError: If its read does not end in time.
        """
        with self._arrived:
            if self._left is not None:
                self._pace = self._pace._replace(decoding=_mean(self._pace.decoding, time.monotonic() - self._left))
            found = self._wait(order.row, tick)
            if found is None:
                self._add(Fetch([order], 0, self._most, alone=True))
                self._start()
                found = self._wait(order.row, tick)
            self._start()
            self._left = time.monotonic()
        if isinstance(found, bytes):
            return found
        raise found or UnreadError

    def _queue(self, orders: list[Order]) -> None:
        """Queues a read, unless it is of an input that is to be read in its turn."""
        first = orders[0]
        if any((order.size or 0) > self._most for order in orders):
            return
        room = first.size if len(orders) == 1 else end_of(orders[-1]) - (first.offset or 0)
        if self._blocks is not None and is_part_of_run(orders):
            self._add(Fetch(orders, 2 * BLOCK, self._most, blocks=self._blocks))
            return
        room = max(_SMALLEST_ROOM, 2 * self._largest) if room is None else room
        if room <= MOST_HELD:
            self._add(Fetch(orders, room, self._most))

    def _add(self, fetch: Fetch) -> None:
        self._waiting.appendleft(fetch) if fetch.alone else self._waiting.append(fetch)
        self._by_row |= dict.fromkeys((order.row for order in fetch.orders), fetch)

    def _wait(self, row: int, tick: Callable[[], None]) -> bytes | Exception | None:
        """Waits for a row's read; returns the outcome, None if the read tells nothing of it or there is none."""
        self._clock.lap()
        while (fetch := self._by_row.get(row)) is not None and not fetch.is_done:
            self._arrived.wait(self._clock.tick)
            self._waited += self._clock.lap()
            tick()
            for each in self._in_flight.copy():
                if self._waited - (each.begun or 0.0) > self._timeout:
                    self._give_up(each)
        return None if fetch is None else self._drop(row)

    def _give_up(self, fetch: Fetch) -> None:
        """Frees the place of a read that does not end; of several inputs, each is tried alone."""
        if len(fetch.orders) == 1:
            fetch.found = {fetch.orders[0].row: UnreadError()}
        self._end(fetch)

    def _end(self, fetch: Fetch) -> None:
        fetch.is_done = True
        self._in_flight.remove(fetch)
        self._held -= fetch.room
        wanted = [order for order in fetch.orders if self._by_row.get(order.row) is fetch]
        fetch.found = {order.row: fetch.found[order.row] for order in wanted if order.row in fetch.found}
        self._held += sum(map(_size, fetch.found.values()))
        if not fetch.found and len(fetch.orders) > 1:
            for order in reversed(wanted):
                single = Fetch([order], order.size or 0, self._most)
                self._waiting.appendleft(single)
                self._by_row[order.row] = single
        self._arrived.notify_all()

    def _drop(self, row: int) -> bytes | Exception | None:
        """Forgets a row; returns the outcome of its read, if there is one."""
        found = self._by_row.pop(row).found.pop(row, None)
        self._held -= _size(found)
        return found

    def _is_wanted(self, fetch: Fetch) -> bool:
        return any(self._by_row.get(order.row) is fetch for order in fetch.orders)

    def _next(self) -> Fetch | None:
        """Returns the next read, which counts as in flight from now on, if it may begin."""
        if not self._waiting:
            return None
        fetch = self._waiting[0]
        is_free = len(self._in_flight) < (self._reads or self._pace.reads()) and self._held + fetch.room <= MOST_HELD
        if not (is_free or fetch.alone):
            return None
        self._waiting.popleft()
        self._in_flight.append(fetch)
        self._held += fetch.room
        fetch.begun = self._waited
        return fetch

    def _start(self) -> None:
        """Begins all reads that may begin, in threads that are idle or new."""
        while (fetch := self._next()) is not None:
            self._begun.put(fetch)
            if self._idle:
                self._idle -= 1
            else:
                self._start_thread()

    def _start_thread(self) -> None:
        try:
            threading.Thread(target=self._read, name="embedx-read", daemon=True).start()
        except RuntimeError:  # the system allows no more; one of those that run takes the read
            if len(self._in_flight) == 1:
                raise

    def _read(self) -> None:
        """Makes one read after another in a thread, until there has been none for a while."""
        while (fetch := self._taken()) is not None:
            begun = time.monotonic()
            found = fetch.run()
            with self._arrived:
                if fetch.is_done:  # it was given up, and another thread has its place
                    return
                self._pace = self._pace._replace(latency=_mean(self._pace.latency, time.monotonic() - begun))
                self._largest = max(self._largest, *map(_size, found.values()), 0)
                fetch.found = found
                self._end(fetch)
                self._idle += 1
                self._start()

    def _taken(self) -> Fetch | None:
        """Waits for a read that has been begun; returns None if the thread is to end."""
        while True:
            try:
                return self._begun.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                with self._arrived:
                    if self._idle:  # else a read for this thread is on its way
                        self._idle -= 1
                        return None


def _size(found: bytes | Exception | None) -> int:
    return len(found) if isinstance(found, bytes) else 0


def _mean(mean: float, value: float) -> float:
    return mean + _SMOOTHING * (value - mean) if mean else value
