"""Single reads from afar: of one input, or of several that lie side by side in a file, such as the members of a tar."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from embedx.data.loading.orders import Order
from embedx.data.loading.shared_blocks import SharedBlocks
from embedx.data.reading.files import FileReader, RejectedInputError
from embedx.values import too_large

MOST_MERGED = 8 << 20
"""The most bytes of neighbours in a file that one read brings."""
_WIDEST_GAP = 128 << 10
"""The most bytes between neighbours in a file that are read for the sake of one read."""


_SHORTEST_RUN = 16
"""The number of inputs, at least, that are a part of a run."""


class UnreadError(Exception):
    """The reading of an input has not ended within the time that it may take."""


class Fetch:
    """One read, and its outcome.

    Args:
        orders: The inputs, in the order of the file.
        room: The number of bytes that are counted for it while it is in flight.
        most: The largest number of bytes of an input.
        alone: Whether it is of one input whose turn it is; then it may bring more than there is room for.
        blocks: The blocks that the workers share, if it is to be taken from there.
    """

    def __init__(
        self, orders: list[Order], room: int, most: int, *, alone: bool = False, blocks: SharedBlocks | None = None
    ) -> None:
        self.orders = orders
        self.room = room
        self.alone = alone
        self.is_done = False
        self.begun: float | None = None
        """The seconds that its worker had waited when it began."""
        self.found: dict[int, bytes | Exception] = {}
        """The bytes, or the error, of each row; a row of which this read tells nothing is left out."""
        self._most = most
        self._blocks = blocks

    def run(self) -> dict[int, bytes | Exception]:
        """Reads; returns the bytes, or the error, of each row of which the read tells what a read of it alone would."""
        if len(self.orders) == 1:
            (order,) = self.orders
            most = self._most if self.alone or order.offset is not None else min(self.room, self._most)
            outcome = _outcome(order, most)
            is_cut = most < self._most and isinstance(outcome, RejectedInputError) and str(outcome) == too_large(most)
            return {} if is_cut else {order.row: outcome}
        start = self.orders[0].offset or 0
        end = end_of(self.orders[-1])
        data: bytes | Exception | None
        if self._blocks is None:
            data = _outcome(self.orders[0]._replace(size=end - start), MOST_MERGED)
        else:
            data = self._blocks.read(os.fsdecode(self.orders[0].path), start, end)
        if not isinstance(data, bytes) or len(data) != end - start:
            return {}
        begins = [(order, (order.offset or 0) - start) for order in self.orders]
        return {order.row: data[begin : begin + (order.size or 0)] for order, begin in begins}


def neighbours(orders: Iterable[Order], most: int) -> Iterator[list[Order]]:
    """Cuts inputs, in their order, into lists of which each is read at once: rows of a plan that lie side by side.

    One larger than `most` is with no other.
    """
    some: list[Order] = []
    for order in orders:
        alone = order.offset is None or order.size is None or order.size > most
        if some and (alone or not _follows(some[-1], order) or end_of(order) - (some[0].offset or 0) > MOST_MERGED):
            yield some
            some = []
        some.append(order)
        if alone:
            yield some
            some = []
    if some:
        yield some


def is_part_of_run(orders: list[Order]) -> bool:
    """Tells whether inputs are a short part of a file whose other inputs are in all likelihood read as well, soon."""
    if len(orders) < _SHORTEST_RUN:
        return False
    span = end_of(orders[-1]) - (orders[0].offset or 0)
    return span < MOST_MERGED // 2 and 2 * sum(order.size or 0 for order in orders) > span


def end_of(order: Order) -> int:
    """Returns the position behind an input in its file."""
    return (order.offset or 0) + (order.size or 0)


def _follows(one: Order, other: Order) -> bool:
    return one.path == other.path and other.row == one.row + 1 and 0 <= (other.offset or 0) - end_of(one) <= _WIDEST_GAP


def _outcome(order: Order, most: int) -> bytes | Exception:
    try:
        return FileReader().read(order.path, order.offset, order.size, most)
    except Exception as error:  # noqa: BLE001  (the worker raises it when the input's turn comes)
        return error
