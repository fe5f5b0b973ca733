"""The parts of a run, put together as its settings say."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from embedx import ExtractConfig, sample
from embedx.data.decoding.batch_rows import DenseDecoder
from embedx.data.decoding.features import FeatureDecoder
from embedx.data.decoding.images import ImageDecoder
from embedx.data.decoding.nvjpeg import CopyToDevice, DecodeOnDevice, PartialDecoder
from embedx.errors import ConfigError
from embedx.run import extract as extract_module
from embedx.run import prepare as prepare_module
from embedx.run.extract import extract
from embedx.run.job import Job
from embedx.run.prepare import DEFAULT_THREADS, check_decoder, prepare
from embedx.run.recompute import recompute
from embedx.store.reading.reader import Store
from embedx.system.machine import cores
from embedx.values import DecoderName
from tests.runs import EMBEDX, digests, written

BACKBONE = ("--backbone", sample.BACKBONE, "--weights", "sample")
SETTINGS: dict[str, Any] = {"backbone": sample.BACKBONE, "weights": "sample", "data": (str(sample.IMAGES / "val"),)}


def test_only_images_are_decoded_on_the_device_and_only_if_asked_for(tmp_path: Path) -> None:
    images = prepare(ExtractConfig(**SETTINGS, out=tmp_path, device="cpu"))
    assert isinstance(images.decoder, ImageDecoder)
    np.save(tmp_path / "features.npy", np.ones((3, 8), np.float32))
    data = (str(tmp_path / "features.npy"),)
    features = prepare(ExtractConfig(backbone="none", data=data, out=tmp_path / "store", device="cpu"))
    assert isinstance(features.decoder, FeatureDecoder)
    cases: list[tuple[Job, DecoderName, bool]]
    cases = [(images, "cpu", False), (images, "cuda", True), (features, "cuda", False)]
    for job, name, there in cases:
        job = dataclasses.replace(job, config=dataclasses.replace(job.config, decoder=name))
        assert isinstance(job.worker_decoder, PartialDecoder if there else DenseDecoder)
        assert isinstance(job.transfer(), DecodeOnDevice if there else CopyToDevice)


def test_cropping_first_is_part_of_the_recipe_and_leaves_no_trace_without(tmp_path: Path) -> None:
    usual = prepare(ExtractConfig(**SETTINGS, out=tmp_path)).recipe.to_json()["preprocessing"]
    assert "crop_first" not in usual
    first = prepare(ExtractConfig(**SETTINGS, out=tmp_path, crop_first=True, crop_pct=0.5)).recipe.to_json()
    assert first["preprocessing"] == {**usual, "resize": usual["crop"], "crop_first": 0.5}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_images_can_only_be_decoded_where_the_model_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--decoder cuda decodes where the model runs, and that is the cpu"):
        extract(ExtractConfig(**SETTINGS, out=tmp_path / "store", decoder="cuda"))
    assert not (tmp_path / "store").exists()


def test_features_are_decoded_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--decoder cuda is for images, and --backbone none takes features"):
        check_decoder(ExtractConfig(backbone="none", out=tmp_path, decoder="cuda"), torch.device("cuda"))


def test_a_number_of_threads_is_for_one_run(tmp_path: Path) -> None:
    prepare(ExtractConfig(**SETTINGS, out=tmp_path, device="cpu", threads=3))
    assert torch.get_num_threads() == 3
    prepare(ExtractConfig(**SETTINGS, out=tmp_path, device="cpu"))
    assert torch.get_num_threads() == min(DEFAULT_THREADS, cores())
    with pytest.raises(ConfigError, match="--threads is -1; give a whole number of at least 1"):
        prepare(ExtractConfig(**SETTINGS, out=tmp_path, device="cpu", threads=-1))


@pytest.mark.parametrize("native", [True, False])
def test_bf16_where_a_processor_has_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(extract_module, "has_bf16", lambda device: native)
    job = prepare(ExtractConfig(**SETTINGS, out=tmp_path, device="cpu", precision="bf16"))
    console = Console(file=io.StringIO(), width=200)
    extract_module._notices(job, console)
    assert ("this CPU does not compute in bf16 itself: fp32 is faster" in written(console)) != native


def test_a_run_that_decodes_on_the_device_gives_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this one; what nvJPEG makes of an image is for the tests that need a GPU."""
    monkeypatch.setattr(prepare_module, "check_decoder", lambda config, device: None)
    names: tuple[DecoderName, ...] = ("cpu", "cuda")
    for name in names:
        extract(ExtractConfig(**SETTINGS, out=tmp_path / name, device="cpu", decoder=name, batch_size=16))
    one, other = (Store.open(tmp_path / name) for name in ("cpu", "cuda"))
    assert one.recipe | {"decoder": "cuda"} == other.recipe != one.recipe
    assert torch.equal(*(store.load("all", framework="torch").embeddings for store in (one, other)))
    assert digests(tmp_path / "cpu") != digests(tmp_path / "cuda"), "shards name their recipe"
    found = recompute(tmp_path / "cuda", 20)
    assert found.rows == 20 and not found.faults and found.largest_difference == 0


def test_threads_and_workers_are_as_many_as_there_are_cores_unless_given(tmp_path: Path) -> None:
    out = tmp_path / "one core"
    call = ["extract", "--data", str(sample.IMAGES / "val"), *BACKBONE, "--device", "cpu", "--out", str(out), "--json"]
    done = subprocess.run(["taskset", "-c", "0", *EMBEDX, *call], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    means = json.loads(done.stdout)["means"]
    how = {"precision": "fp32", "runtime": means["runtime"], "decoder": "cpu"}
    assert means == {"device": "cpu", **how, "threads": 1, "workers": 1, "batch_size": 32}
    assert f"({means['runtime']} on cpu, 1 thread, 1 worker)" in done.stderr
    assert Store.open(out).manifest.environment.to_json()["threads"] == 1
    given = extract(ExtractConfig(**SETTINGS, out=tmp_path / "given", device="cpu", threads=3, workers=cores() + 1))
    assert given.ran_on == {**means, "runtime": given.ran_on["runtime"], "threads": 3, "workers": cores() + 1}
    assert Store.open(tmp_path / "given").manifest.environment.to_json()["threads"] == 3
