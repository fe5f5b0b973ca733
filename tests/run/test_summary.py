from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from embedx import ExtractConfig, sample
from embedx.errors import ConfigError, StoreLockedError
from embedx.run.extract import extract
from embedx.run.summary import Summary
from embedx.run.up_to_date import look_for_work
from embedx.store.format.manifest import Manifest
from embedx.store.writing.lock import StoreLock

IMAGES = sample.IMAGES / "val/disc"


def config(out: Path, images: Path, **settings: Any) -> ExtractConfig:
    defaults: dict[str, Any] = {
        "backbone": sample.BACKBONE,
        "checkpoint": out.parent / "weights.safetensors",
        "workers": 0,
    }
    return ExtractConfig(data=(str(images),), out=out, **defaults | settings)


@pytest.fixture
def done(tmp_path: Path) -> ExtractConfig:
    shutil.copyfile(sample.CHECKPOINT, tmp_path / "weights.safetensors")
    shutil.copytree(IMAGES, tmp_path / "images")
    settings = config(tmp_path / "store", tmp_path / "images")
    extract(settings)
    return settings


def test_that_nothing_is_to_be_done_is_found_out_without_torch_and_so_is_what_a_store_says(done: ExtractConfig) -> None:
    code = f"""
import sys
from pathlib import Path, PosixPath
import embedx
from embedx import ExtractConfig
from embedx.cli.app import run
from embedx.run.summary import Summary
from embedx.run.up_to_date import look_for_work
summary, plan = look_for_work({done!r})
assert summary.up_to_date and summary.rows == {len(list(IMAGES.iterdir()))}, summary
assert len(embedx.open({str(done.out)!r}).index()) == summary.rows
sys.argv = ["embedx", "info", {str(done.out)!r}]
assert run() == 0
assert not {{"torch", "torchvision"}} & set(sys.modules)
"""
    folder = Manifest.read(done.out).settings.working_directory
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder)


def test_whatever_is_other_than_it_was_is_left_to_a_whole_run(done: ExtractConfig) -> None:
    harmless: dict[str, Any] = {"workers": 3, "timeout": 7.0, "max_errors": 5, "on_error": "fail", "update": True}
    for name, value in harmless.items():
        assert look_for_work(dataclasses.replace(done, **{name: value}))[0] is not None, name
    others: dict[str, Any] = {
        "batch_size": 7,
        "normalize": True,
        "shard_size": 1,
        "overwrite": True,
        "retry_rejected": True,
        "out": done.out.parent / "none",
        "group_key": "class",
        "backbone": "timm:resnet10t",
    }
    for name, value in others.items():
        assert look_for_work(dataclasses.replace(done, **{name: value})) == (None, None), name
    faults: dict[str, Any] = {"workers": -1, "timeout": float("nan"), "max_pixels": 0, "max_errors": -1}
    for name, value in faults.items():
        assert look_for_work(dataclasses.replace(done, **{name: value})) == (None, None), name
    manifest = Manifest.read(done.out)
    for changes in ({"environment": manifest.environment.replacing(torch="1.0")}, {"complete": False}):
        dataclasses.replace(manifest, **changes).write(done.out)
        assert look_for_work(done) == (None, None)
    manifest.write(done.out)
    with (done.out.parent / "weights.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"!")
    assert look_for_work(done) == (None, None)


def test_inputs_or_files_that_are_other_than_they_were_are_left_to_a_whole_run(done: ExtractConfig) -> None:
    shard = done.out / "all/shard-00000.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    summary, plan = look_for_work(done)
    assert summary is None and plan is not None
    assert extract(done, plan=plan).rows == len(plan.splits["all"]) and shard.read_bytes() == content
    lock = StoreLock(done.out)
    with pytest.raises(StoreLockedError):
        look_for_work(done)
    lock.release()
    images = done.out.parent / "images"
    next(images.iterdir()).unlink()
    summary, plan = look_for_work(done)
    assert summary is None and plan is not None and len(plan.splits["all"]) == len(list(images.iterdir()))
    shutil.rmtree(images)
    with pytest.raises(ConfigError, match="there is no folder"):
        look_for_work(done)


@pytest.mark.parametrize(
    ("timings", "verdict"),
    [
        ({"loader_wait_seconds/a": 3.0, "forward_seconds/a": 1.0}, "decode-bound: the model waited 75% of the time"),
        (
            {
                "forward_seconds/a": 3.0,
                "loader_wait_seconds/a": 2.0,
                "forward_seconds/b": 1.0,
                "callbacks_seconds/b": 2.0,
            },
            "compute-bound: the model ran 50% of the time",
        ),
        (
            {"copy_seconds/a": 3.0, "forward_seconds/a": 2.0},
            "transfer-bound: bringing batches to the GPU, or",
        ),
        (
            {"writer_wait_seconds/a": 3.0, "forward_seconds/a": 2.0},
            "disk-bound: the writer was waited for 60% of the",
        ),
        ({"inputs": 7.0}, ""),
    ],
)
def test_the_verdict_names_what_takes_most_of_the_time(timings: dict[str, float], verdict: str) -> None:
    summary = Summary(Path("manifest.json"), {}, False, None, 1.0, timings)
    assert summary.verdict.startswith(verdict) and bool(summary.verdict) == bool(verdict)
    assert summary.to_json()["verdict"] == summary.verdict


@pytest.mark.parametrize(
    ("part", "ran_on", "advice"),
    [
        ("loader_wait", {"device": "cpu", "decoder": "cpu"}, "more --workers or a faster disk"),
        ("loader_wait", {"device": "cuda:0", "decoder": "cpu"}, "more --workers or --decoder cuda or a faster disk"),
        ("loader_wait", {"device": "cuda:0", "decoder": "cuda"}, "more --workers or a faster disk"),
        ("copy", {"device": "cuda:0", "decoder": "cpu"}, "a larger --batch-size"),
        ("copy", {"device": "cuda:0", "decoder": "cuda"}, "a larger --batch-size or --decoder cpu"),
        ("forward", {"device": "cuda:0", "precision": "bf16"}, "another --runtime"),
        ("forward", {"device": "cpu", "precision": "bf16"}, "another --runtime or a GPU"),
    ],
)
def test_the_advice_is_nothing_that_the_run_did_or_could_not_do(
    part: str, ran_on: dict[str, str | int], advice: str
) -> None:
    summary = Summary(Path("manifest.json"), {}, False, None, 1.0, {f"{part}_seconds/a": 1.0}, ran_on)
    assert summary.verdict.partition("; give ")[2] == advice


def test_bf16_is_advised_where_the_processor_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ran_on: dict[str, str | int] = {"device": "cpu", "precision": "fp32"}
    summary = Summary(Path("manifest.json"), {}, False, None, 1.0, {"forward_seconds/a": 1.0}, ran_on)
    for able in (True, False):
        monkeypatch.setattr("embedx.models.device.has_bf16", lambda device, able=able: able)
        assert ("--precision bf16" in summary.verdict) == able
