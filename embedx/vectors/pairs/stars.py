"""Groups of duplicates as stars: each member is within the threshold of its representative, and never only of another.

Shapes: N rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from embedx.vectors.pairs.close_pairs import ClosePairs

NONE = -1
"""The number in place of a representative that is not known, and of bytes that are not known."""


class Stars:
    """Gives each row the first representative before it that it is close to; a row without one is one itself.

    That is, the rows are gone through in their order: one that is no one's member yet becomes a representative, and
    the later rows that are close to it and not yet members become its members. Two rows are close if their inputs have
    equal bytes or their similarity is within the threshold. No pair is stored: the memory grows with the rows alone.

    The tiles have to come in the order of `pairs_of_blocks`: a block's own one first.

    Args:
        bytes_codes: The numbers of the rows' bytes [N] int64: equal for equal bytes, NONE where they are unknown.
        apart: The number of rows at the beginning that are compared with the rows behind them alone; 0 compares all
            rows with all.
    """

    def __init__(self, bytes_codes: NDArray[np.int64], apart: int = 0) -> None:
        self.representative = np.full(len(bytes_codes), NONE, dtype=np.int64)
        """The number of each row's representative [N] int64, which for a representative is its own."""
        self._codes = bytes_codes
        self._apart = apart
        self._first = np.full(bytes_codes.max(initial=NONE) + 1, NONE, dtype=np.int64)
        """The first representative with each number of bytes."""
        self.representative[:apart] = np.arange(apart)
        known = np.flatnonzero(bytes_codes[:apart] != NONE)[::-1]
        self._first[bytes_codes[known]] = known  # of several, the last assignment stays: that of the first row

    def join(self, close: ClosePairs) -> None:
        """Makes later rows that are free the members of the representatives among earlier ones; the first one wins."""
        is_representative = self.representative[close.rows] == close.rows
        is_free = self.representative[close.columns] == NONE
        if not is_representative.any() or not is_free.any():
            return
        rows, columns = close.rows[is_representative], close.columns[is_free]
        is_close = close.is_close[np.ix_(is_representative, is_free)]
        taken = is_close.any(axis=0)
        self.representative[columns[taken]] = rows[is_close.argmax(axis=0)[taken]]

    def settle(self, start: int, stop: int, close: ClosePairs | None) -> None:
        """Decides the rows [start, stop) of a block, all of whose earlier rows are decided, by its own tile."""
        self._join_by_bytes(start, stop)
        own, codes = self.representative[start:stop], self._codes[start:stop]
        pairs = {} if close is None else dict(zip((close.rows - start).tolist(), close.is_close, strict=True))
        free = np.flatnonzero(own == NONE)
        values, counts = np.unique(codes[free], return_counts=True)
        shared = {*values[counts > 1].tolist()} - {NONE}
        for place in free.tolist():
            if own[place] != NONE:
                continue
            own[place] = start + place
            if (code := int(codes[place])) != NONE:
                self._first[code] = start + place
            if close is not None and place in pairs:
                members = close.columns[pairs[place]] - start
                own[members[own[members] == NONE]] = start + place
            if code in shared:
                own[(codes == code) & (own == NONE)] = start + place

    def finish(self) -> None:
        """Makes rows with the bytes of a representative its members, and all other free rows representatives."""
        self._join_by_bytes(self._apart, len(self.representative))
        free = np.flatnonzero(self.representative == NONE)
        self.representative[free] = free

    def _join_by_bytes(self, start: int, stop: int) -> None:
        """Gives rows [start, stop) the first representative with their bytes, unless they have an earlier one."""
        own, codes = self.representative[start:stop], self._codes[start:stop]
        if not len(self._first):
            return
        first = np.where(codes == NONE, NONE, self._first[codes])
        is_earlier = (first != NONE) & ((own == NONE) | (first < own))
        own[is_earlier] = first[is_earlier]
