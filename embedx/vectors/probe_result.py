"""The result of a probe."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor

from embedx.vectors.probe_config import Method


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

    store: Path
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
    confusion: tuple[tuple[int, ...], ...]
    """The number of test rows by class and predicted class, [C][C] in the order of `classes`."""
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

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain JSON values."""
        return dataclasses.asdict(self) | {
            "store": str(self.store),
            "classes": [{**dataclasses.asdict(each), "accuracy": each.accuracy} for each in self.classes],
            "head": str(self.head) if self.head else None,
            "seconds": round(self.seconds, 3),
        }


def class_results(
    names: list[str], targets: list[int], train_rows: list[int], confusion: Tensor
) -> tuple[ClassResult, ...]:
    """Sums up the confusion matrix [C, C], the number of test rows by class and predicted class, class by class."""
    results = []
    for number, (row, mistakes) in enumerate(zip(confusion, confusion.clone().fill_diagonal_(0), strict=True)):
        mistaken_for = names[int(mistakes.argmax())] if mistakes.any() else None
        counts = (train_rows[number], int(row.sum()), int(row[number]))
        results.append(ClassResult(names[number], targets[number], *counts, mistaken_for))
    return tuple(results)
