"""The pictures of a report: which rows get one, and what reading them tells of the images.

Shapes: M points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedx.errors import LoaderError
from embedx.heartbeat import Heartbeat
from embedx.store.format.index import INPUT_COLUMNS
from embedx.store.reading.reader import Store
from embedx.vectors.countdown import Countdown
from embedx.vectors.reporting.findings import Measured
from embedx.vectors.reporting.report_data import Picture
from embedx.vectors.reporting.strata import stratified_sample

MOST = 2_000
"""The most pictures of a page."""
_MOST_LISTED = 1_200
"""The most pictures of rows in lists; the others are spread over the map."""
_CELLS = 24
"""The map is cut into so many cells on either side, and each of them gets its share of the pictures."""


class ReadPicture(NamedTuple):
    """A small picture of an input, and what was measured of its image."""

    data: bytes | None
    """A whole file of the picture; None if there is none."""
    fault: str | None
    """The reason why there is none."""
    width: int
    height: int
    brightness: float
    """The mean luma, from 0 (black) to 1 (white)."""
    sharpness: float
    """The variance of the Laplacian of luma, with the shorter side shrunk to 256 pixels."""


ReadPictures = Callable[[Store, pa.Table], Iterator[ReadPicture]]
"""Reads a picture of each row's input, in the order of the rows."""


def rows_to_show(
    listed: Iterable[int], points: NDArray[np.int64], places: NDArray[np.uint16], seed: int
) -> NDArray[np.int64]:
    """Chooses the rows that get a picture: those in lists first, and then some from all over the map.

    Args:
        listed: The numbers of rows in lists, the most important first; they may repeat.
        points: The numbers of the rows on the map, [M] int64.
        places: Their places on the map, [M, 2] uint16.
        seed: The seed of the choice.

    Returns:
        The numbers of the rows, ascending.
    """
    first = np.array(list(dict.fromkeys(listed))[:_MOST_LISTED], np.int64)
    others = ~np.isin(points, first)
    cells = places.astype(np.int64) * _CELLS // 2**16
    chosen = stratified_sample((cells[:, 0] * _CELLS + cells[:, 1])[others], MOST - len(first), seed)
    return np.sort(np.concatenate([first, points[others][chosen]]))


def read_pictures(
    store: Store, table: pa.Table, numbers: NDArray[np.int64], read: ReadPictures, heartbeat: Heartbeat
) -> tuple[tuple[Picture, ...], list[Measured]]:
    """Reads the pictures of rows.

    Args:
        store: The store with the rows.
        table: The rows' index, with INPUT_COLUMNS.
        numbers: The numbers of the rows that are wanted.
        read: The function that reads them.
        heartbeat: The receiver of progress.

    Returns:
        A picture for each row, and what was measured of those that could be read.
    """
    chosen = table.select(INPUT_COLUMNS).take(pa.array(numbers, pa.int64()))
    pictures: list[Picture] = []
    measured = []
    countdown = Countdown(heartbeat, f"reading {len(numbers):,} pictures", len(numbers))
    try:
        for number, picture in zip(numbers.tolist(), read(store, chosen), strict=True):
            pictures.append(Picture(picture.data, picture.fault, picture.width, picture.height))
            if picture.data is not None:
                size = max(picture.width, 1), max(picture.height, 1)
                measured.append(Measured(number, *size, picture.brightness, picture.sharpness))
            countdown.add(1)
    except LoaderError as error:  # of an image that ends the processes that decode; the rest of the report is done
        rest = Picture(None, f"the reading of pictures has ended: {error}", 0, 0)
        pictures += [rest] * (len(numbers) - len(pictures))
    return tuple(pictures), measured
