"""Every runtime computes what the backbone does, row by row, whatever stands beside it."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from embedx.config import ExtractConfig
from embedx.errors import RuntimeUnfitError
from embedx.models.backbones import describe_backbone
from embedx.models.embedder import Embedder
from embedx.models.runtimes import choice as runtimes
from embedx.models.runtimes.compiled import CompiledRuntime
from embedx.models.runtimes.eager import EagerRuntime, fold_batch_norms
from embedx.models.runtimes.openvino import OpenVinoRuntime
from embedx.recipe import Preprocessing

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SIZE = 64
PLAIN = Preprocessing(resize=SIZE, crop=SIZE, interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


def batch(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (4, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)


class Small(nn.Module):
    """A bit of a residual network, and of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.BatchNorm2d(16), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.attention = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.stem(images)
        tokens = (maps + self.block(maps)).flatten(2).mT
        return {"embeddings": self.attention(tokens).mean(1), "stem": maps}


def small() -> Embedder:
    torch.manual_seed(0)
    return Embedder(Small().eval(), PLAIN, pool="avg", normalize=True).eval()


def of_name(name: str) -> Embedder:
    config = ExtractConfig(backbone=name, out=Path("store"), weights="random", image_size=SIZE)
    return describe_backbone(config).load()


@pytest.mark.parametrize(
    "load",
    [
        small,
        *(
            pytest.param(
                functools.partial(of_name, name),
                marks=[pytest.mark.soak, pytest.mark.timeout(300)],
                id=name,
            )
            for name in ("resnet50", "mobilenet_v3_small", "swin_t")
        ),
    ],
)
@pytest.mark.parametrize("kind", [EagerRuntime, pytest.param(CompiledRuntime, marks=pytest.mark.soak), OpenVinoRuntime])
def test_rows_are_those_of_the_backbone_and_depend_on_nothing_else(load: Callable[[], Embedder], kind: Any) -> None:
    images, embedder = batch(), load()
    with torch.inference_mode():
        expected = embedder(images)
    runtime = kind(copy.deepcopy(embedder), CPU, "fp32", torch.zeros_like(images))
    outputs = {name: value.clone() for name, value in runtime(images).items()}
    assert list(outputs) == list(expected)
    for name, value in outputs.items():
        assert value.dtype == torch.float32 and value.shape == expected[name].shape
        assert (value - expected[name]).abs().max() <= 1e-5 * expected[name].abs().max()
    moved = runtime(images.flip(0))
    assert all(torch.equal(moved[name].flip(0), value) for name, value in outputs.items())
    padded = images.clone()
    padded[1:] = 0
    alone = runtime(padded)
    assert all(torch.equal(alone[name][0], value[0]) for name, value in outputs.items())
    again = kind(copy.deepcopy(embedder), CPU, "fp32", images)(images)
    assert all(torch.equal(again[name], value) for name, value in outputs.items())


def test_batch_norms_are_folded_where_the_backbone_can_be_traced() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(5).eval()
    norm.running_mean, norm.running_var = torch.rand(5), torch.rand(5) + 0.5
    backbone = nn.Sequential(nn.Conv2d(3, 5, 3), norm, nn.ReLU(), nn.Flatten()).eval()
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        expected = backbone(images)
        fold_batch_norms(backbone)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
        torch.testing.assert_close(backbone(images), expected)
        shared: Any
        for shared in (nn.Sequential(backbone[0], norm, backbone[0]), nn.Sequential(norm, backbone[0])):
            shared[0].out_channels, before = 3, list(shared)
            fold_batch_norms(shared)
            assert list(shared) == before


class Branching(nn.Module):
    """What no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 5)

    def forward(self, images: Tensor) -> Tensor:
        pooled = images.mean((2, 3))
        for _ in range(int(pooled.sum().item()) % 3 + 1):
            pooled = pooled + 1
        result: Tensor = self.head(pooled)
        return result


@pytest.mark.parametrize("name", ["compile", "openvino"])
def test_what_a_runtime_does_not_take_falls_to_the_next_with_a_notice(name: str) -> None:
    notices: list[str] = []
    torch.manual_seed(0)
    embedder = Embedder(Branching().eval(), PLAIN, pool="avg", normalize=False)
    runtime = runtimes.build((name, "eager"), lambda: embedder, CPU, "fp32", batch(), notices.append)
    assert runtime.name == "eager" and runtime(batch())["embeddings"].shape == (4, 5)
    (notice,) = notices
    assert notice.startswith(f"the runtime {name} does not take this backbone (")
    assert notice.endswith("; going on with the runtime eager") and "\n" not in notice
    with pytest.raises(RuntimeUnfitError, match=f"the runtime {name} does not take this backbone"):
        runtimes.build((name,), lambda: embedder, CPU, "fp32", batch(), notices.append)


class Maps(nn.Module):
    """The same operations whatever the images are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.BatchNorm2d(16), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.stem(images)
        return maps.flatten(2).mean(2)


class Judging(Maps):
    """Goes by the images' size, of which a trace can't be sure that it stays."""

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2] != images.shape[3]:
            raise ValueError(f"{images.shape[2]} is not {images.shape[3]}")
        return super().forward(images if images.shape[2] % 2 == 0 else images[:, :, 1:, 1:])


class Counting(Maps):
    """Goes by how many they are, which are fewer in a trace."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if len(images) < 4 else images.flip(1))


class Weighing(Maps):
    """The same operations for any number of images, with other numbers."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images * (0.5 if len(images) < 4 else 0.7))


class Noting(Maps):
    """Takes their number down, which no trace follows."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).reshape(int(images.shape[0]), -1)


class Peeking(Maps):
    """Goes by what is on them."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.sum() > 0 else -images)


def test_openvino_refuses_what_goes_by_the_images() -> None:
    embedder = Embedder(Peeking().eval(), PLAIN, pool="avg", normalize=True).eval()
    with pytest.raises(RuntimeUnfitError, match="the runtime openvino does not take this backbone"):
        OpenVinoRuntime(embedder, CPU, "fp32", batch())


@pytest.mark.parametrize(
    ("module", "exported"), [(Maps, False), (Judging, True), (Counting, True), (Weighing, True), (Noting, True)]
)
def test_openvino_takes_a_trace_unless_that_might_be_another_model(
    monkeypatch: pytest.MonkeyPatch, module: type[Maps], exported: bool
) -> None:
    exports = []
    export = torch.export.export

    def recorded(*args: Any) -> Any:
        exports.append(args)
        return export(*args)

    monkeypatch.setattr(torch.export, "export", recorded)
    torch.manual_seed(0)
    embedder = Embedder(module().eval(), PLAIN, pool="avg", normalize=True).eval()
    with torch.inference_mode():
        expected = embedder(batch())["embeddings"]
    found = OpenVinoRuntime(embedder, CPU, "fp32", batch())(batch())["embeddings"]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max() and bool(exports) == exported


@pytest.mark.soak
def test_openvino_tells_nobody() -> None:
    """Its converter would report each use to its makers."""
    code = """
import sys, torch
from torch import nn
from embedx.recipe import Preprocessing
from embedx.models.embedder import Embedder
from embedx.models.runtimes.openvino import OpenVinoRuntime
plain = Preprocessing(8, 8, "bilinear", (0.5,) * 3, (0.5,) * 3)
sockets = []
sys.addaudithook(lambda event, args: sockets.append(event) if event.startswith("socket.") else None)
embedder = Embedder(nn.Flatten(), plain, pool="avg", normalize=False)
images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
assert OpenVinoRuntime(embedder, torch.device("cpu"), "fp32", images)(images)["embeddings"].shape == (2, 192)
assert not sockets and not any(name.startswith("openvino_telemetry.") for name in sys.modules), sockets
"""
    subprocess.run([sys.executable, "-c", code], check=True)
