"""How fast a run is: figures that go together."""

import time
from typing import Any

import pytest
import torch
from torch import nn

from embedx.callbacks.throughput import Throughput
from embedx.engine import loop

PAUSE = 0.05


class Slow(nn.Module):
    """Takes its time."""

    def forward(self, images: Any) -> Any:
        time.sleep(PAUSE)
        return images


def batches(count: int, rows: int = 3) -> list[dict[str, Any]]:
    """Batches padded to twice their rows."""
    return [{"images": torch.zeros(2 * rows, 1), "index": torch.arange(rows)} for _ in range(count)]


def figures(callback: Throughput, loaders: dict[str, Any]) -> dict[str, Any]:
    metrics = loop.run_test(Slow(), loaders, [callback])["metrics"]
    assert all(type(value) in (int, float) for value in metrics.values())
    return {name.removeprefix("test/"): value for name, value in metrics.items()}


def test_the_figures_go_together() -> None:
    start = time.perf_counter()
    found = figures(Throughput(), {"train": batches(2), "val": batches(1)})
    passed = time.perf_counter() - start
    spent = {name: value for name, value in found.items() if "/" in name}
    assert list(found) == ["inputs", "seconds", "first_batch_seconds", "images_per_second", *spent]
    names = ("loader_wait", "copy", "forward", "callbacks")
    parts = [f"{part}_seconds/{split}" for split in ("train", "val") for part in names]
    assert list(spent) == parts and sum(spent.values()) == pytest.approx(found["seconds"], rel=0.1)
    assert spent["forward_seconds/train"] >= 2 * PAUSE - 0.001 > spent["loader_wait_seconds/train"]
    assert found["inputs"] == 9, "padding is not counted"
    assert PAUSE <= found["first_batch_seconds"] + 0.001 < found["seconds"]
    assert 3 * PAUSE <= found["seconds"] + 0.001 <= passed + 0.002
    assert found["images_per_second"] == pytest.approx(found["inputs"] / found["seconds"], rel=0.02)


def test_the_clock_starts_with_the_epoch_not_with_setup() -> None:
    class SlowStart(Throughput):
        def setup(self) -> None:
            time.sleep(0.5)

    assert figures(SlowStart(), {"all": batches(1)})["seconds"] < 0.4


def test_a_run_without_batches_has_figures_too() -> None:
    found = figures(Throughput(), {"all": []})
    assert (found["inputs"], found["first_batch_seconds"], found["images_per_second"]) == (0, 0.0, 0.0)


def test_a_second_run_counts_anew() -> None:
    callback = Throughput()
    loaders = {"all": batches(1)}
    assert figures(callback, loaders)["inputs"] == figures(callback, loaders)["inputs"] == 3
