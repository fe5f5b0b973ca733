"""A split as a torch Dataset: the rows that `load` gives, in workers as well."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import embedx
from tests.store.builders import build_store


@pytest.mark.parametrize("workers", [0, 1])
def test_it_has_the_rows_of_the_split(tmp_path: Path, workers: int) -> None:
    store = embedx.open(build_store(tmp_path / "store", inputs=12))
    rows, dataset = store.load("train", framework="torch"), store.dataset("train")
    assert len(dataset) == 11 and dataset.table["key"].to_pylist() == rows.keys
    assert torch.equal(dataset[-1][0], rows.embeddings[-1]) and dataset[2][1] == rows.targets[2]
    with pytest.raises(IndexError, match="there is no row 11; the split has 11"):
        dataset[11]
    context = "forkserver" if workers else None
    loader = DataLoader(dataset, batch_size=4, num_workers=workers, multiprocessing_context=context)
    embeddings, targets = map(torch.cat, zip(*loader, strict=True))
    assert torch.equal(embeddings, rows.embeddings) and torch.equal(targets, rows.targets)
