from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from embedx.config import ExtractConfig
from embedx.errors import ConfigError
from embedx.models.backbones import describe_backbone
from embedx.models.device import resolve_device, resolve_precision
from embedx.models.embedder import Embedder
from embedx.models.runtimes.eager import EagerRuntime
from embedx.recipe import Preprocessing

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    config = ExtractConfig(backbone="shufflenet_v2_x0_5", out=Path("store"), weights="random", image_size=64)
    return describe_backbone(config).load()


def outputs(embedder: Embedder, images: torch.Tensor, precision: Any = "fp32") -> torch.Tensor:
    runtime = EagerRuntime(copy.deepcopy(embedder), CPU, precision)
    embeddings: torch.Tensor = runtime(images)["embeddings"]
    return embeddings


def test_the_eager_runtime_gives_what_the_embedder_gives(embedder: Embedder, images: torch.Tensor) -> None:
    with torch.inference_mode():
        expected = embedder(images)["embeddings"]
    result = outputs(embedder, images)
    assert result.dtype == torch.float32 and not result.requires_grad
    torch.testing.assert_close(result, expected)


def test_a_rows_bits_depend_on_nothing_but_its_image(embedder: Embedder, images: torch.Tensor) -> None:
    whole = outputs(embedder, images)
    assert torch.equal(outputs(embedder, images.flip(0)).flip(0), whole)
    padded = images.clone()
    padded[2:] = 0
    assert torch.equal(outputs(embedder, padded)[:2], whole[:2])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close_to_full_and_pooled_and_scaled_in_full(
    embedder: Embedder, images: torch.Tensor, precision: str
) -> None:
    half, full = outputs(embedder, images, precision), outputs(embedder, images)
    assert half.dtype == torch.float32
    assert functional.cosine_similarity(half, full).min() > 0.99
    scaled = copy.deepcopy(embedder)
    scaled.normalize = True
    norms = outputs(scaled, images, precision).double().norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(len(images), dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pool", ["avg", "gem"])
def test_pooling_large_values_in_half_precision_does_not_overflow(images: torch.Tensor, pool: str) -> None:
    class Large(nn.Conv2d):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.full_like(super().forward(pixels), 60_000.0)

    plain = Preprocessing(resize=64, crop=64, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
    result = outputs(Embedder(Large(3, 5, 1), plain, pool=pool, normalize=False), images, "fp16")
    torch.testing.assert_close(result, torch.full((len(images), 5), 60_000.0))


def test_the_cpu_is_always_there() -> None:
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "CPU", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "", "cuda:0\n"])
def test_a_device_that_does_not_exist_is_a_fault(name: str) -> None:
    with pytest.raises(ConfigError, match="is none of auto, cpu, cuda, cuda:N"):
        resolve_device(name)


def test_a_device_that_is_not_there_is_a_fault() -> None:
    with pytest.raises(ConfigError, match=r"--device cuda:99: torch sees \d+ CUDA devices; give --device cpu or auto"):
        resolve_device("cuda:99")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a CUDA device")
def test_without_cuda_that_device_is_a_fault() -> None:
    with pytest.raises(ConfigError, match="--device cuda: torch sees 0 CUDA devices"):
        resolve_device("cuda")


def test_cuda_alone_is_the_first_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, number in (("cuda", 0), ("auto", 0), ("cuda:1", 1)):
        assert resolve_device(name) == torch.device("cuda", number)  # torch.cuda.set_device takes none without it


def test_the_precision_follows_the_device_where_none_is_given() -> None:
    assert (resolve_precision(None, CPU), resolve_precision(None, CUDA)) == ("fp32", "tf32")
    assert (resolve_precision("bf16", CPU), resolve_precision("fp32", CUDA)) == ("bf16", "fp32")
    assert resolve_precision("tf32", CUDA) == "tf32"


def test_tf32_is_a_fault_on_the_cpu() -> None:
    with pytest.raises(ConfigError, match="--precision tf32 is for CUDA devices; on the CPU give fp32 or bf16"):
        resolve_precision("tf32", CPU)
