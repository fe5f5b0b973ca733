"""The picture of a confusion matrix: its cells, its words, its size."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedx.vectors.probing.confusion_plot import confusion_png
from embedx.vectors.probing.probe_result import ClassResult, Mistake, ProbeResult

WHITE, DARKEST = (255, 255, 255), (8, 64, 129)


def picture(matrix: np.ndarray, names: list[str]) -> np.ndarray:
    classes = tuple(
        ClassResult(name, i, 1, int(matrix[i].sum()), int(matrix[i, i]), None) for i, name in enumerate(names)
    )
    rows = int(matrix.sum())
    mistakes = tuple(Mistake(a, b, int(matrix[a, b])) for a, b in np.argwhere(matrix).tolist() if a != b)
    result = ProbeResult(
        Path("store"), "f", "knn", "train", "val", 9, rows, matrix.trace() / rows, None, 0.5, None, classes,
        mistakes, {}, 0, (), True, None, 1.0,
    )  # fmt: skip
    return np.asarray(Image.open(io.BytesIO(confusion_png(result))))


def cells(image: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """The first pixel of each cell, and the cells' side, from the grey frame around them."""
    grey = (image == (120, 120, 120)).all(axis=2)
    top = int(np.argmax(grey.sum(axis=1) > 0.5 * grey.sum(axis=1).max()))
    (lines,) = np.nonzero(grey[top])
    left, side = lines[0] + 1, (lines[-1] - lines[0]) // count
    return image[top + 1 : top + count * side : side, left : left + count * side : side], side


def test_a_cell_is_the_darker_the_larger_its_share_of_the_row() -> None:
    found, side = cells(picture(np.array([[9, 0, 0], [1, 3, 0], [0, 0, 0]]), ["a", "b", "c"]), 3)
    assert side == 44
    assert tuple(found[0, 0]) == DARKEST and tuple(found[0, 1]) == tuple(found[2, 2]) == WHITE
    assert DARKEST[0] < found[1, 1][0] < found[1, 0][0] < 255


def test_numbers_and_names_are_written_while_there_is_room() -> None:
    few = picture(np.eye(3, dtype=int), ["one", "two", "three"])
    unnamed = picture(np.eye(3, dtype=int), ["", "", ""])
    assert (few < 100).all(axis=2).sum() > (unnamed < 100).all(axis=2).sum()
    assert few.shape[0] > unnamed.shape[0] and few.shape[1] >= unnamed.shape[1]


@pytest.mark.parametrize("count", [2, 50, 60, 300])
def test_it_stays_of_a_size_that_can_be_looked_at(count: int) -> None:
    image = picture(np.eye(count, dtype=int) * 12345, [f"class {i}" + "x" * 50 for i in range(count)])
    found, side = cells(image, count)
    assert found.shape[:2] == (count, count) and side == max(1, min(44, 1200 // count))
    assert max(image.shape) < 1900


def test_a_long_name_is_cut() -> None:
    assert picture(np.eye(2, dtype=int), ["x" * 30, "y"]).shape == picture(np.eye(2, dtype=int), ["x" * 99, "y"]).shape
