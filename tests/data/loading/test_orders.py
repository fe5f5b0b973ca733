"""The inputs of a batch in columns, and the runs in them."""

from __future__ import annotations

import pytest

from embedx.data.loading.orders import Order, Orders


@pytest.mark.parametrize(
    ("places", "runs"),
    [
        ([("a", 0), ("a", 1), ("a", 2)], [(0, 3)]),
        ([("a", 0), ("a", 1), ("b", 2), ("b", 3), ("a", 2)], [(0, 2), (2, 4), (4, 5)]),
        ([("a", 0), ("b", 0), ("a", 1), ("b", 1)], [(0, 1), (1, 2), (2, 3), (3, 4)]),
        ([("a", 5), ("a", 4), ("a", 6), ("a", 7)], [(0, 1), (1, 2), (2, 4)]),
        ([("a", 1), ("a", 1), ("a", 3)], [(0, 1), (1, 2), (2, 3)]),
        ([("a", 0), ("a", None)], [(0, 1), (1, 2)]),
        ([("a", None), ("a", None)], [(0, 1), (1, 2)]),
    ],
)
def test_a_run_is_of_one_file_and_counts_up(places: list[tuple[str, int | None]], runs: list[tuple[int, int]]) -> None:
    each = [Order(10 + number, path.encode(), offset, 8) for number, (path, offset) in enumerate(places)]
    orders = Orders.listed(each)
    assert orders.runs() == runs
    assert list(orders) == each and len(orders) == len(each)
    assert [orders[position] for position in range(len(each))] == each
    assert [orders.place(position) for position in range(len(each))] == [(path.encode(), at) for path, at in places]
