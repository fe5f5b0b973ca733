"""The result of a probe."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from embedx.paths import StorePath
from embedx.vectors.probing.probe_config import Method

MOST_IN_MATRIX = 1000
"""The number of classes up to which the whole confusion matrix is given and drawn, as it grows by their square."""
MOST_MISTAKES = 100
"""The number of mistakes in JSON."""


@dataclasses.dataclass(frozen=True)
class ClassResult:
    """One class's rows and predictions."""

    name: str
    target: int
    train_rows: int
    rows: int
    """The number of rows of the class in the test split."""
    correct: int
    """The number of those rows that were predicted to be of the class."""
    mistaken_for: str | None
    """The class most often predicted for the other rows; None if there are none."""

    @property
    def accuracy(self) -> float | None:
        """The share of correct rows; None without rows."""
        return self.correct / self.rows if self.rows else None


class Mistake(NamedTuple):
    """The rows of one class that were predicted to be of another one."""

    place: int
    """The class's place in ProbeResult's `classes`."""
    predicted: int
    """The place of the predicted class."""
    rows: int


@dataclasses.dataclass(frozen=True)
class Strength:
    """An L2 strength that was tried, and the performance of its head on the rows that were held out."""

    l2: float
    loss: float
    """The mean cross-entropy."""
    top1: float


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """The accuracies of a probe, and how it was made."""

    store: StorePath
    fingerprint: str
    """The fingerprint of the store's recipe."""
    method: Method
    train: str
    test: str
    train_rows: int
    test_rows: int
    top1: float
    """The share of the test rows whose class was predicted."""
    top5: float | None
    """The share of those whose class is among the five most likely; None for five classes or fewer."""
    mean_class_accuracy: float
    """The mean of the classes' accuracies."""
    average_precision: float | None
    """The average precision of the second of two classes; None for more."""
    classes: tuple[ClassResult, ...]
    mistakes: tuple[Mistake, ...]
    """The wrong predictions, the most frequent first."""
    settings: dict[str, float | int]
    """The settings that made a difference: l2 and seed for linear, k and temperature for knn."""
    epochs: int
    """The number of iterations in which the head was fitted; 0 for knn."""
    strengths: tuple[Strength, ...]
    """The L2 strengths that were tried; empty if one was given."""
    converged: bool
    """True if the fit came to its end; always true for knn."""
    head: Path | None
    """The file of the saved head."""
    seconds: float

    def matrix(self, places: Sequence[int]) -> list[list[int]]:
        """Returns the number of test rows by class and predicted class, of the classes at these places alone."""
        at = {place: number for number, place in enumerate(places)}
        matrix = [[0] * len(at) for _ in at]
        for place, number in at.items():
            matrix[number][number] = self.classes[place].correct
        for mistake in self.mistakes:
            if mistake.place in at and mistake.predicted in at:
                matrix[at[mistake.place]][at[mistake.predicted]] = mistake.rows
        return matrix

    @property
    def confusion(self) -> list[list[int]] | None:
        """The confusion matrix [C][C] in the order of `classes`; None for more than MOST_IN_MATRIX classes."""
        return self.matrix(range(len(self.classes))) if len(self.classes) <= MOST_IN_MATRIX else None

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain JSON values, with the most frequent mistakes."""
        names = [each.name for each in self.classes]
        return {**vars(self), "strengths": [dataclasses.asdict(each) for each in self.strengths]} | {
            "confusion": self.confusion,
            "mistakes": [
                {"class": names[mistake.place], "predicted": names[mistake.predicted], "rows": mistake.rows}
                for mistake in self.mistakes[:MOST_MISTAKES]
            ],
            "store": str(self.store),
            "classes": [{**dataclasses.asdict(each), "accuracy": each.accuracy} for each in self.classes],
            "head": str(self.head) if self.head else None,
            "seconds": round(self.seconds, 3),
        }


def class_results(
    names: list[str], targets: list[int], train_rows: list[int], confusion: Tensor
) -> tuple[tuple[ClassResult, ...], tuple[Mistake, ...]]:
    """Sums up the confusion matrix, a sparse tensor [C, C] of the test rows by class and predicted class.

    Returns the classes, and the mistakes, the most frequent first.
    """
    rows, correct, mistakes = [0] * len(names), [0] * len(names), []
    for place, predicted, count in zip(*confusion.indices().tolist(), confusion.values().tolist(), strict=True):
        rows[place] += count
        if place == predicted:
            correct[place] = count
        else:
            mistakes.append(Mistake(place, predicted, count))
    mistakes.sort(key=lambda mistake: -mistake.rows)
    mistaken_for = {mistake.place: names[mistake.predicted] for mistake in reversed(mistakes)}
    columns = (names, targets, train_rows, rows, correct, map(mistaken_for.get, range(len(names))))
    return tuple(itertools.starmap(ClassResult, zip(*columns, strict=True))), tuple(mistakes)
