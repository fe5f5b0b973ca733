"""An image in many rows of a table: each row has its embedding, and a unit computes it once."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import embedx
from embedx import ExtractConfig, sample
from embedx.run.extract import extract
from embedx.run.prepare import prepare

IMAGES = sorted(path for path in sample.IMAGES.rglob("*") if path.is_file())[:7]
SETTINGS: dict[str, Any] = {
    "backbone": sample.BACKBONE,
    "weights": "sample",
    "workers": 0,
    "batch_size": 4,
    "image_size": 64,
}


@pytest.mark.parametrize("group_key", [None, "kind"])
def test_an_image_in_many_rows_is_computed_once_in_a_unit(tmp_path: Path, group_key: str | None) -> None:
    choice = random.Random(7)
    rows = [(f"k{row:03d}", choice.choice([*IMAGES, tmp_path / "missing.png"]), row % 3) for row in range(100)]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "path", "kind"), *rows])
    config = ExtractConfig(
        **SETTINGS,
        data=(str(tmp_path / "t.csv"),),
        key_column="id",
        group_key=group_key,
        shard_size=64 * 4200,
        out=tmp_path / "store",
    )
    job = prepare(config)
    plan = job.plan.splits["all"]
    units = plan.unit_rows(job.rows_per_unit)
    assert len(units) == 2 and len(job.loader(plan, units)) == 2 * 2, "8 files make two batches of 4 in each unit"
    summary = extract(config)
    missing = sum(path.name == "missing.png" for _, path, _ in rows)
    assert (summary.rows, summary.rejected) == (100 - missing, missing) and list(
        embedx.verify(tmp_path / "store")
    ) == []

    extract(ExtractConfig(**SETTINGS, data=tuple(map(str, IMAGES)), out=tmp_path / "each"))
    each = embedx.open(tmp_path / "each").load("all", framework="torch")
    found = embedx.open(tmp_path / "store").load("all", framework="torch")
    path_of = {key: str(path) for key, path, _ in rows}
    assert sorted(found.keys) == sorted(key for key, path, _ in rows if path in IMAGES)
    assert torch.equal(found.embeddings, torch.stack([each[path_of[key]] for key in found.keys]))
    assert extract(config).up_to_date
