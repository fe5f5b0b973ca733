"""Batches that were looked at come again, in their places."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from embedx.data.decoding.images import ImageDecoder
from embedx.data.loading.loaders import SplitLoader
from embedx.data.loading.peeked import PeekedLoader
from embedx.data.plan import build_plan
from embedx.recipe import Preprocessing
from tests.folders import folder_source

DECODER = ImageDecoder(Preprocessing(resize=8, crop=8, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1)))


def loader_of(folder: Path, units: int | None = None) -> SplitLoader:
    plan = build_plan({"all": folder_source(folder)}, None).splits["all"]
    return SplitLoader(plan, plan.unit_rows(8)[:units], DECODER, batch_size=4, workers=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 images in shades of grey."""
    root = tmp_path_factory.mktemp("images")
    for number in range(13):
        Image.new("L", (9, 8), number * 10).save(root / f"{number:02d}.png")
    return root


@pytest.mark.parametrize("peeked", [(), (0,), (0, 1), (3, 0), (9,)])
def test_the_iteration_has_every_batch_once(folder: Path, peeked: tuple[int, ...]) -> None:
    expected = list(loader_of(folder))
    loader = PeekedLoader(loader_of(folder))
    loader.start()
    for number in peeked:
        assert loader.peek(number)["keys"] == expected[number % len(expected)]["keys"]
    batches = list(loader)
    loader.close()
    assert len(loader) == len(batches) == len(expected) == 4
    for one, other in zip(batches, expected, strict=True):
        assert one["index"].tolist() == other["index"].tolist() and torch.equal(one["images"], other["images"])


def test_a_loader_without_batches_says_so(folder: Path) -> None:
    loader = PeekedLoader(loader_of(folder, 0))
    with pytest.raises(IndexError, match="no batch"):
        loader.peek(0)
    assert list(loader) == []
