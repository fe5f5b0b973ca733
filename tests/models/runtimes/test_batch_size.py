"""What becomes of a forward pass that does not fit into the device's memory.

On the CPU, with a module that says so as CUDA would; tests/test_gpu.py has the same with CUDA.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import embedx
from embedx.config import ExtractConfig
from embedx.errors import DeviceMemoryError, StoreMismatchError
from embedx.models.runtimes.eager import EagerRuntime
from embedx.run.extract import extract
from embedx.run.prepare import prepare
from embedx.store.format.layout import MANIFEST
from embedx.values import parse_batch_size
from tests.models.backbones.programs import SIZE

pytestmark = pytest.mark.usefixtures("one_thread")
MODULE = "tests.models.backbones.programs"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for source in sorted((embedx.sample.IMAGES / "val" / "star").iterdir()):
        (folder / source.name).symlink_to(source)
    return folder


def config(images: Path, out: Path, fits: int, **settings: Any) -> ExtractConfig:
    backbone = {"backbone": f"{MODULE}:narrow", "backbone_arg": (f"fits={fits}",), "device": "cpu"}
    defaults: dict[str, Any] = {"data": (str(images),), "workers": 0, "batch_size": "auto", **backbone}
    return ExtractConfig(out=out, **defaults | settings)


@pytest.mark.parametrize(("fits", "size"), [(100, 32), (32, 32), (31, 16), (8, 8), (7, 4), (1, 1)])
def test_auto_is_the_largest_power_of_two_that_fits(images: Path, tmp_path: Path, fits: int, size: int) -> None:
    job = prepare(config(images, tmp_path / "store", fits))
    assert job.batch_size == job.manifest.recipe.batch_size == job.describe()["batch_size"] == size
    assert job.rows_per_unit % size == 0


def test_auto_is_recorded_and_a_rerun_takes_it_from_the_store(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    assert extract(config(images, out, 5)).rows == 10
    assert embedx.open(out).manifest.recipe.batch_size == 4
    assert json.loads((out / MANIFEST).read_text())["settings"]["batch_size"] == "auto"
    assert prepare(config(images, out, 0)).batch_size == 4  # not tried, as then none would fit
    assert extract(config(images, out, 5)).up_to_date
    assert extract(config(images, out, 5, batch_size=4)).up_to_date
    with pytest.raises(StoreMismatchError, match=r"recipe\.batch_size: 4 → 2"):
        extract(config(images, out, 5, batch_size=2))
    with pytest.raises(DeviceMemoryError):
        prepare(config(images, out, 0, overwrite=True))


@pytest.mark.parametrize(("fits", "size"), [(20, 15), (10, 7), (1, 1)])
def test_out_of_memory_names_the_batch_size_that_fits(images: Path, tmp_path: Path, fits: int, size: int) -> None:
    message = rf"CPU is out of memory with --batch-size 30; {size} fits \(tried\): give --batch-size {size}, or auto"
    with pytest.raises(DeviceMemoryError, match=message) as caught:
        extract(config(images, tmp_path / "store", fits, batch_size=30))
    assert caught.value.exit_code == 1 and caught.value.__context__ is None  # which would hold all that memory
    assert extract(config(images, tmp_path / "store", fits, batch_size=size, overwrite=True)).rows == 10


@pytest.mark.parametrize("batch_size", ["auto", 8, 1])
def test_where_not_even_one_image_fits_that_is_said(images: Path, tmp_path: Path, batch_size: Any) -> None:
    with pytest.raises(DeviceMemoryError, match="CPU is out of memory even with one image at a time; free some, or"):
        extract(config(images, tmp_path / "store", 0, batch_size=batch_size))


def test_other_faults_of_a_forward_pass_are_not_taken_for_it(images: Path, tmp_path: Path) -> None:
    job = prepare(config(images, tmp_path / "store", 3))
    model = EagerRuntime(job.spec.load(), job.device, job.precision)
    with pytest.raises(RuntimeError, match="shape") as caught:
        model(torch.zeros(2, 3, SIZE - 20, SIZE, dtype=torch.uint8))
    assert not isinstance(caught.value, torch.OutOfMemoryError)


@pytest.mark.parametrize(("value", "read"), [("auto", "auto"), ("64", 64), (64, 64), ("-1", -1)])
def test_batch_sizes_are_read(value: Any, read: Any) -> None:
    assert parse_batch_size(value) == read


@pytest.mark.parametrize("value", ["", "Auto", "1.5", 1.5, "many", True])
def test_what_is_no_batch_size_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="is not a number of images; write it like 64, or auto"):
        parse_batch_size(value)
