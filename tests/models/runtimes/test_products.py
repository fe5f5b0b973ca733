from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import SwinTransformer, VisionTransformer

from embedx.models.embedder import Embedder
from embedx.models.runtimes import products
from embedx.models.runtimes.eager import EagerRuntime
from embedx.models.runtimes.products import OneDnnProducts, is_slow
from embedx.recipe import Preprocessing

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN")

PLAIN = Preprocessing(resize=32, crop=32, interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


class Taken(TorchDispatchMode):
    """Counts the products by the library that makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.by_onednn = self.by_blas = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.by_onednn += func is torch.ops.mkldnn._linear_pointwise.default
        self.by_blas += func is torch.ops.aten.linear.default
        return func(*args, **(kwargs or {}))


def run(module: nn.Module, images: Tensor) -> tuple[Tensor, Taken]:
    with torch.inference_mode(), Taken() as taken, OneDnnProducts(module):
        return module(images), taken


def vit() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5).eval()


def swin() -> nn.Module:
    torch.manual_seed(0)
    return SwinTransformer([4, 4], 16, [1, 1], [2, 4], [4, 4], num_classes=5).eval()


@pytest.mark.parametrize(("backbone", "weights"), [(vit, 2 * 4 + 1), (swin, 2 * 4 + 1 + 1)], ids=["vit", "swin"])
def test_all_products_by_weights_are_made_by_onednn_to_the_same_numbers(
    backbone: Callable[[], nn.Module], weights: int
) -> None:
    module, images = backbone(), torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        expected = module(images)
    found, taken = run(module, images)
    assert (taken.by_onednn, taken.by_blas) == (weights, 0)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    again, _ = run(module, images)
    assert torch.equal(found, again) and torch.backends.mha.get_fastpath_enabled()


def test_the_eager_runtime_multiplies_that_way_where_the_usual_one_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    def features(*, slow: bool) -> Tensor:
        monkeypatch.setattr(products, "is_slow", lambda: slow)
        embedder = Embedder(vit(), PLAIN, pool="avg", normalize=False).eval()
        runtime = EagerRuntime(embedder, torch.device("cpu"), "fp32")
        assert isinstance(runtime._products, OneDnnProducts) == slow
        return runtime(images)["embeddings"]

    images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    usual, found = features(slow=False), features(slow=True)
    assert (found - usual).abs().max() <= 1e-5 * usual.abs().max()
    assert torch.equal(found, features(slow=True))


class Odd(nn.Module):
    """Products by a part of a weight, by what is computed, by a weight that lies across, and in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.short = nn.Parameter(torch.randn(6, 6).half())

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(1)
        part = linear(rows, self.weight[:3])
        moved = linear(rows, self.weight * 2)
        across = linear(rows, self.weight.t())
        half = linear(rows.half(), self.short).float()
        return torch.cat([part, moved, across, half], 1)


def test_what_is_no_whole_weight_is_left_to_the_usual_way() -> None:
    torch.manual_seed(0)
    module, images = Odd(), torch.randn(4, 1, 2, 3)
    with torch.inference_mode():
        expected = module(images)
    found, taken = run(module, images)
    assert torch.equal(found, expected) and taken.by_onednn == 0 and taken.by_blas == 4


@pytest.mark.parametrize(
    ("vendor", "capability", "slow"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False)],
)
def test_the_slow_way_is_that_of_amd_with_avx512(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendor: str, capability: str, slow: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(products, "_PROCESSOR", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert is_slow() == slow
    monkeypatch.setattr(products, "_PROCESSOR", tmp_path / "nowhere")
    assert not is_slow()
