"""What a run settles by its first batches; the reference is the run to which the same was said."""

from __future__ import annotations

import io
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import embedx
from embedx.config import ExtractConfig
from embedx.errors import Interrupted
from embedx.heartbeat import Heartbeat
from embedx.models.device import has_bf16
from embedx.models.runtimes import choice, trial
from embedx.recipe import Recipe
from embedx.run import settle as settling
from embedx.run.extract import extract
from embedx.run.prepare import prepare
from tests.distribute.members import contents
from tests.runs import run

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
needs_bf16 = pytest.mark.skipif(not has_bf16(CPU), reason="this processor multiplies no bf16")


def config(out: Path, **settings: Any) -> ExtractConfig:
    small: dict[str, Any] = {"backbone": "squeezenet1_1", "weights": "random", "image_size": 64, "batch_size": 8}
    return ExtractConfig(out=out, workers=1, shard_size=65536, **small | settings)


@pytest.fixture
def everything_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "LARGEST_COST", 10**9)
    monkeypatch.setattr(trial, "SHORTEST_RUN", 0)
    monkeypatch.setattr(choice, "rivals", lambda device: ("openvino",))


def recipe_of(store: Path) -> tuple[str, str]:
    recipe = embedx.open(store).manifest.recipe
    assert recipe.runtime is not None and recipe.precision is not None
    return recipe.runtime, recipe.precision


@pytest.mark.parametrize(("lead", "winner"), [(0.0, "openvino"), (1e9, "eager")])
def test_the_store_is_the_winners_from_the_first_row_on(
    lead: float, winner: str, everything_pays: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_LEAD", lead)
    found, expected = tmp_path / "auto", tmp_path / "given"
    summary = extract(config(found))
    extract(config(expected, runtime=winner))
    assert summary.profile.keys() == {"train", "val"} and summary.trial.keys() == {"eager", "openvino"}
    assert summary.trial["openvino"][1] > 0 == summary.trial["eager"][1]
    assert recipe_of(found) == recipe_of(expected) == (winner, "fp32")
    assert contents(found) == contents(expected)
    manifest = embedx.open(found).manifest
    assert {"trial_images_per_second/openvino", "trial_images_per_second/eager"} < manifest.timings.keys()
    assert manifest.timings["trial_seconds_to_build/openvino"] > 0
    assert ("openvino" in manifest.environment.to_json()) == (winner == "openvino")
    monkeypatch.setattr(trial, "_LEAD", 1e9)
    assert extract(config(found)).up_to_date


class Stopped(trial.AheadOfTheLoop):
    """Is interrupted at its twelfth batch."""

    batches = 0

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.batches += 1
        if self.batches == 12:
            raise Interrupted(signal.SIGINT)
        return super().forward(images)


@pytest.mark.parametrize("overwrite", [False, True])  # which goes on beside the store
def test_a_store_that_was_begun_goes_on_with_its_runtime(
    overwrite: bool, everything_pays: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, found = tmp_path / "expected", tmp_path / "found"
    extract(config(expected, runtime="openvino"))
    if overwrite:
        extract(config(found, runtime="eager"))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(trial, "_LEAD", 0.0)
        patch.setattr(trial, "AheadOfTheLoop", Stopped)
        extract(config(found, overwrite=overwrite))
    monkeypatch.setattr(trial, "_LEAD", 1e9)
    assert not prepare(config(found, overwrite=overwrite)).rivals
    said = io.StringIO()
    extract(config(found, overwrite=overwrite), Heartbeat(Console(file=said)))
    assert "goes on: " in said.getvalue()
    assert contents(found) == contents(expected) and recipe_of(found)[0] == "openvino"


def test_without_a_row_a_store_has_no_runtime_yet(tmp_path: Path) -> None:
    extract(config(tmp_path))
    for index in (tmp_path / "index").iterdir():
        index.unlink()
    job = prepare(config(tmp_path, precision="auto"))
    assert job.rivals and job.may_take_bf16 == has_bf16(CPU)
    assert job.describe()["runtime"] == "auto"


@needs_bf16
@pytest.mark.soak
@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_precision_auto_is_the_run_of_the_precision_that_it_takes(devices: str, tmp_path: Path) -> None:
    command = ["extract", "--backbone", "squeezenet1_1", "--weights", "random", "--image-size", "32", "-b", "16"]
    command += ["--shard-size", "65536", "--runtime", "eager", "--threads", "2"]
    done = run(*command, "--precision", "auto", "--devices", devices, "--out", tmp_path / "auto")
    assert done.returncode == 0, done.stderr
    precision = recipe_of(tmp_path / "auto")[1]
    assert f"--precision auto: {precision}, as the smallest cosine" in done.stderr
    smallest = embedx.open(tmp_path / "auto").manifest.timings["trial_smallest_cosine"]
    assert (precision == "bf16") == (smallest >= 0.9995)
    done = run(*command, "--precision", precision, "--out", tmp_path / "given")
    assert contents(tmp_path / "auto") == contents(tmp_path / "given")
    if devices == "cpu":
        assert "up to date" in run(*command, "--precision", "auto", "--out", tmp_path / "auto").stderr


class Coarse(nn.Module):
    """Vectors that bf16 can't tell from others: what they differ by is lost beside what they have in common."""

    def __init__(self) -> None:
        super().__init__()
        self.common = nn.Parameter(torch.tensor(1000.0))

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1)[:, :16] + self.common) - self.common


@needs_bf16
def test_bf16_is_not_taken_where_it_changes_the_rows(tmp_path: Path) -> None:
    said = Console(file=io.StringIO())
    plain = {"weights": "DEFAULT", "image_size": 8, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    job = prepare(config(tmp_path, backbone=f"{__name__}:Coarse", precision="auto", **plain))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8, generator=generator)
    batch = {"images": images, "index": torch.arange(8), "reasons": [None] * 7 + ["damaged"]}
    settled, smallest = settling.settle_precision(job, [batch], said)
    assert job.may_take_bf16 and settled.precision == "fp32" and smallest < 0.9995
    assert "--precision auto: fp32" in said.file.getvalue()  # type: ignore[attr-defined]
    batch["reasons"] = ["damaged"] * 8
    assert settling.settle_precision(job, [batch], said)[0].precision == "fp32"


def test_the_recipe_that_is_settled_is_the_one_that_was_stated(tmp_path: Path) -> None:
    extract(config(tmp_path))
    stated = embedx.open(tmp_path).manifest.recipe.to_json()
    job = prepare(config(tmp_path))
    assert isinstance(job.recipe, Recipe) and job.recipe.to_json() == stated
