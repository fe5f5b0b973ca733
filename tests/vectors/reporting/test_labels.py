"""The label of each row."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from embedx.store.format.contents import PlanTerms, StoredRecipe
from embedx.store.format.manifest import Manifest
from embedx.vectors.reporting.labels import Labels, labels_of


def labels(
    targets: list[int | None],
    groups: list[str | None] | None = None,
    classes: tuple[str, ...] | None = None,
    **columns: list[Any],
) -> Labels:
    manifest = Manifest(StoredRecipe.from_json({}), PlanTerms(None, 8, classes=classes))
    table = pa.table(
        {
            "target": pa.array(targets, pa.int64()),
            "group": pa.array(groups or [None] * len(targets), pa.string()),
            **columns,
        }
    )
    return labels_of(table, manifest)


@pytest.mark.parametrize(
    ("found", "kind", "texts"),
    [
        (labels([1, 0, None, 1], classes=("ant", "bee")), "class", ["bee", "ant", "", "bee"]),
        (labels([1, 0, None, 1], label=["b", "a", None, "b"]), "class", ["b", "a", "", "b"]),
        (labels([1, 0, 1], label=["b", "a", "c"]), "class", ["1", "0", "1"]),
        (labels([7, 0, 7], classes=("ant", "bee")), "class", ["7", "0", "7"]),
        (labels([-1, 0], classes=("ant", "bee")), "class", ["-1", "0"]),
        (labels([None, None], ["x", None]), "group", ["x", ""]),
        (labels([None, None]), "", ["", ""]),
        (labels([]), "", []),
    ],
)
def test_labels_are_the_classes_names_or_else_the_groups(found: Labels, kind: str, texts: list[str]) -> None:
    assert found.kind == kind and [found.of(row) for row in range(len(texts))] == texts


def test_the_most_frequent_label_is_the_first() -> None:
    found = labels([2, 1, 2, 0, 1, 2, 5], classes=("d", "b", "c", "x", "y", "a"))
    assert found.names == ("c", "b", "a", "d") and found.codes.tolist() == [0, 1, 0, 3, 1, 0, 2]
