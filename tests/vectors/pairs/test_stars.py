"""Stars drawn by hand: who represents whom, by similarity and by equal bytes."""

from __future__ import annotations

import numpy as np

from embedx.vectors.pairs.close_pairs import ClosePairs
from embedx.vectors.pairs.stars import NONE, Stars


def pairs(*close: tuple[int, int], rows: range, columns: range) -> ClosePairs:
    is_close = np.zeros((len(rows), len(columns)), dtype=bool)
    for row, column in close:
        is_close[row - rows.start, column - columns.start] = True
    return ClosePairs(np.array(rows), np.array(columns), is_close)


def both(*close: tuple[int, int], rows: range) -> ClosePairs:
    """The pairs of a block's own tile, which has each of them twice."""
    return pairs(*close, *((b, a) for a, b in close), rows=rows, columns=rows)


def codes(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(numbers, dtype=np.int64)


def test_a_member_represents_nobody() -> None:
    stars = Stars(codes(*[NONE] * 6))
    stars.settle(0, 3, both((0, 1), (1, 2), rows=range(3)))
    stars.join(pairs((1, 3), (2, 4), (0, 5), rows=range(3), columns=range(3, 6)))
    stars.settle(3, 6, both((3, 4), (4, 5), (3, 5), rows=range(3, 6)))
    stars.finish()
    assert stars.representative.tolist() == [0, 0, 2, 3, 2, 0]


def test_the_first_representative_wins_whether_by_bytes_or_by_similarity() -> None:
    stars = Stars(codes(7, NONE, 8, 8, 7, 8, 7))
    stars.settle(0, 3, None)
    stars.join(pairs((1, 3), (1, 4), rows=range(3), columns=range(3, 6)))
    stars.join(pairs((2, 6), rows=range(3), columns=range(6, 7)))
    stars.settle(3, 6, None)
    stars.settle(6, 7, None)
    stars.finish()
    assert stars.representative.tolist() == [0, 1, 2, 1, 0, 2, 0]


def test_equal_bytes_of_a_member_and_a_representative_in_one_block() -> None:
    """Row 1 is a member of row 0; row 2 has its bytes and is far from row 0, so that it represents row 3."""
    stars = Stars(codes(1, 5, 5, 5))
    stars.settle(0, 4, both((0, 1), rows=range(4)))
    stars.finish()
    assert stars.representative.tolist() == [0, 0, 2, 2]


def test_rows_on_one_side_are_no_members_of_each_other() -> None:
    stars = Stars(codes(1, 1, NONE, 1, NONE, NONE), apart=3)
    stars.join(pairs((1, 4), (2, 4), rows=range(3), columns=range(3, 6)))
    stars.finish()
    assert stars.representative.tolist() == [0, 1, 2, 0, 1, 5]
