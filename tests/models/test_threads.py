"""Modules of other threads compute as ever while a model is traced."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from embedx.models.layers import with_layers
from embedx.models.runtimes.eager import fold_batch_norms


class Meanwhile(nn.Module):
    """A convolution and its norm; while they are called, another thread calls a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.found: list[object] = []

    def forward(self, images: Tensor) -> Tensor:
        def call() -> None:
            linear = nn.Linear(2, 2)
            try:
                found = nn.Sequential(linear, nn.ReLU())(torch.ones(2))
                self.found.append(torch.equal(found, torch.relu(torch.ones(2) @ linear.weight.T + linear.bias)))
            except Exception as error:  # noqa: BLE001  (the test compares it)
                self.found.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        pixels: Tensor = self.norm(self.conv(images))
        return pixels


def fold(module: nn.Module) -> None:
    fold_batch_norms(module)
    assert isinstance(module.get_submodule("norm"), nn.Identity)


@pytest.mark.parametrize("trace", [fold, lambda module: with_layers(module, ("conv",))], ids=["fold", "layers"])
def test_another_thread_s_modules_compute_while_one_is_traced(trace: Callable[[nn.Module], object]) -> None:
    module = Meanwhile().eval()
    trace(module)
    assert module.found and set(module.found) == {True}
