"""What needs a CUDA device; skipped where there is none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import embedx
from embedx import ExtractConfig, sample
from embedx.data.decoding.nvjpeg import CopyToDevice
from embedx.errors import DeviceMemoryError
from embedx.models.backbones import describe_backbone
from embedx.models.device import resolve_device
from embedx.models.runtimes import choice as runtimes
from embedx.run.extract import extract
from embedx.store.reading.verify import verify
from tests.distribute.members import contents
from tests.runs import digests, run
from tests.store.builders import write_features

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def extracted(out: Path, **settings: Any) -> torch.Tensor:
    defaults: dict[str, Any] = {"backbone": sample.BACKBONE, "weights": "sample", "out": out}
    extract(ExtractConfig(**defaults | settings))
    assert list(verify(out)) == []
    rows: torch.Tensor = embedx.open(out).load("val", framework="torch").embeddings
    return rows


def test_cuda_agrees_with_the_cpu(tmp_path: Path) -> None:
    reference = extracted(tmp_path / "cpu", device="cpu")
    single = extracted(tmp_path / "fp32", device="cuda", precision="fp32")
    assert (single - reference).abs().max() <= 1e-4 * reference.abs().max()
    for precision in ("tf32", "bf16", "fp16"):
        rows = extracted(tmp_path / precision, device="cuda", precision=precision)
        assert torch.nn.functional.cosine_similarity(rows, reference).min() > 0.99, precision


def test_the_same_bytes_on_cuda_with_any_number_of_workers(tmp_path: Path) -> None:
    for workers in (0, 2):
        extracted(tmp_path / str(workers), device="cuda", workers=workers)
    assert digests(tmp_path / "0") == digests(tmp_path / "2")


def test_two_members_on_one_card_give_the_bytes_of_one_process(tmp_path: Path) -> None:
    call = ["extract", "--backbone", sample.BACKBONE, "--weights", "sample", "-b", "16", "--shard-size", "65664"]
    for out, devices in (("one", "0"), ("two", "cuda:0,cuda:0")):
        done = run(*call, "--out", tmp_path / out, "--devices", devices)
        assert done.returncode == 0, done.stderr
        assert list(verify(tmp_path / out)) == []
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_out_of_memory_names_a_batch_size_that_fits_and_auto_finds_one(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"backbone": "resnet50", "weights": "random", "device": "cuda", "precision": "fp32"}
    allowed = 1_500_000_000  # bytes, of which batches of 2048 need more than ten times as much
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.mem_get_info()[1])
    try:
        with pytest.raises(
            DeviceMemoryError, match=r"CUDA is out of memory with --batch-size 2048; \d+ fits"
        ) as caught:
            extract(ExtractConfig(**settings, out=tmp_path / "large", batch_size=2048))
        told = re.search(r"--batch-size (\d+), or auto", str(caught.value))
        assert told is not None
        fitting = int(told[1])
        del caught  # its traceback holds the model
        assert 1 <= fitting < 2048
        extracted(tmp_path / "fitting", **settings, batch_size=fitting)
        extracted(tmp_path / "auto", **settings, batch_size="auto")
        assert embedx.open(tmp_path / "auto").manifest.recipe.batch_size == fitting
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_jpegs_decoded_on_the_gpu_give_nearly_the_rows_of_the_cpu(tmp_path: Path) -> None:
    reference = extracted(tmp_path / "cpu", device="cuda", precision="fp32")
    rows = extracted(tmp_path / "cuda", device="cuda", precision="fp32", decoder="cuda")
    # nvJPEG brings colours to full size without interpolation, which shows in images as small as the sample's.
    cosines = torch.nn.functional.cosine_similarity(rows, reference)
    assert cosines.min() > 0.99 and cosines.mean() > 0.999
    for workers in (0, 2):
        extracted(tmp_path / str(workers), device="cuda", decoder="cuda", workers=workers)
    assert digests(tmp_path / "0") == digests(tmp_path / "2")


@pytest.mark.filterwarnings(  # by torch's own compiler, of itself
    "ignore:.torch.jit.script:DeprecationWarning", "ignore:The CUDA Graph is empty"
)
@pytest.mark.parametrize("runtime", ["eager", "compile"])
def test_a_batch_s_rows_are_those_of_the_plain_forward_pass(runtime: str) -> None:
    config = ExtractConfig(backbone="resnet18", weights="random", out=Path("none"))
    device = resolve_device("cuda")
    spec = describe_backbone(config)
    images = [torch.randint(256, (8, 3, 224, 224), dtype=torch.uint8) for _ in range(5)]
    model = runtimes.build((runtime,), spec.load, device, "fp32", images[0], print)
    assert runtime == "compile" or model._graph is not None
    plain = spec.load().to(device)
    for batch in images:
        with torch.inference_mode():
            expected = plain(batch.to(device))["embeddings"]
        found = model(CopyToDevice(device, "images")({"images": batch.pin_memory()})["images"])["embeddings"]
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_duplicates_on_cuda_are_those_of_the_cpu(tmp_path: Path) -> None:
    rows = torch.randn(9000, 64, generator=torch.Generator().manual_seed(0))
    rows = torch.cat([rows, rows[::3] + 0.1 * torch.randn(3000, 64, generator=torch.Generator().manual_seed(1))])
    store = write_features(tmp_path / "store", {"train": (rows, [0] * 12_000)}, rows_per_unit=4096)
    found = {name: embedx.duplicates(store, threshold=0.99, device=name) for name in ("cpu", "cuda")}
    assert found["cuda"].table.drop(["similarity"]).equals(found["cpu"].table.drop(["similarity"]))
    assert found["cuda"].members > 1000 and found["cuda"].pairs == found["cpu"].pairs
