"""Pending outputs, with a device whose copies are complete when the test says so."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from embedx.callbacks import writer as writer_module
from embedx.callbacks.pending_outputs import HostCopier, PendingOutputs, copier_for, no_copy
from embedx.callbacks.writer import EmbeddingsWriter
from embedx.engine.loop import run_test
from embedx.store.reading.reader import Store


class Flight:
    """A copy that arrives when `land` is called, or when it is waited for."""

    def __init__(self, device: Device, source: Mapping[str, Tensor], target: dict[str, Tensor]) -> None:
        self.device, self.source, self.target = device, source, target
        self.landed = False

    def land(self) -> None:
        if not self.landed:
            for name, tensor in self.source.items():
                self.target[name].copy_(tensor)
            self.landed = True

    def query(self) -> bool:
        return self.landed

    def synchronize(self) -> None:
        self.device.waits += 1
        self.land()


class Device:
    """Copies into memory that holds nothing of worth until they have arrived."""

    def __init__(self) -> None:
        self.flights: list[Flight] = []
        self.waits = 0

    def __call__(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
        target = {name: torch.full_like(tensor, -1) for name, tensor in tensors.items()}
        flight = Flight(self, {name: tensor.clone() for name, tensor in tensors.items()}, target)
        self.flights.append(flight)
        return target, flight


def sent(pending: PendingOutputs[int], number: int) -> list[int]:
    pending.add(number, {"embeddings": torch.full((2, 3), float(number))})
    return taken(pending)


def taken(pending: PendingOutputs[int], **options: Any) -> list[int]:
    found = []
    for number, tensors in pending.complete(**options):
        assert torch.equal(tensors["embeddings"], torch.full((2, 3), float(number))), "before it has arrived"
        found.append(number)
    return found


def test_nothing_is_waited_for_until_more_is_under_way_than_may_be() -> None:
    device = Device()
    pending: PendingOutputs[int] = PendingOutputs(device, slots=3)
    assert [sent(pending, number) for number in range(3)] == [[], [], []] and device.waits == 0
    assert sent(pending, 3) == [0] and device.waits == 1
    device.flights[1].land()
    device.flights[2].land()
    assert sent(pending, 4) == [1, 2] and device.waits == 1, "what has arrived is not waited for"


def test_results_are_taken_in_order_though_they_arrive_in_another() -> None:
    device = Device()
    pending: PendingOutputs[int] = PendingOutputs(device, slots=3)
    sent(pending, 0)
    sent(pending, 1)
    device.flights[1].land()
    assert taken(pending) == [] and device.waits == 0
    device.flights[0].land()
    assert taken(pending) == [0, 1] and device.waits == 0
    assert taken(pending) == []


def test_in_the_end_all_are_waited_for() -> None:
    device = Device()
    pending: PendingOutputs[int] = PendingOutputs(device, slots=3)
    for number in range(3):
        sent(pending, number)
    device.flights[0].land()
    assert taken(pending, wait_for_all=True) == [0, 1, 2] and device.waits == 2
    assert taken(pending, wait_for_all=True) == []


def test_what_is_on_the_host_is_there_at_once_and_is_not_copied() -> None:
    pending: PendingOutputs[int] = PendingOutputs(copier_for(torch.device("cpu")))
    tensor = torch.ones(2, 3)
    pending.add(0, {"embeddings": tensor})
    ((_, tensors),) = pending.complete()
    assert tensors["embeddings"] is tensor
    assert copier_for(torch.device("cpu")) is no_copy


def late_copy(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
    """Copies on a thread, some time after the call."""
    target = {name: torch.full_like(tensor, -1) for name, tensor in tensors.items()}
    done = threading.Event()
    source = {name: tensor.clone() for name, tensor in tensors.items()}

    def copy() -> None:
        time.sleep(0.02)
        for name, tensor in source.items():
            target[name].copy_(tensor)
        done.set()

    threading.Thread(target=copy).start()

    class Late:
        def query(self) -> bool:
            return done.is_set()

        def synchronize(self) -> None:
            done.wait()

    return target, Late()


class Overwriting(nn.Module):
    """Gives its outputs in the same memory each time, as a graph does whose outputs have their place."""

    memory: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.zeros(4, 2))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.memory[:] = images
        return {"embeddings": self.memory}


@pytest.mark.parametrize("copier", [late_copy, no_copy])
def test_a_store_has_every_row_though_results_come_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copier: HostCopier
) -> None:
    monkeypatch.setattr(writer_module, "copier_for", lambda device: copier)
    count = {"a": 26, "b": 3}
    batches = {
        name: [
            {
                "images": torch.arange(start, start + 4).float()[:, None].expand(4, 2),
                "index": torch.arange(start, min(start + 4, total)),
                "keys": [f"{name}{row}" for row in range(start, min(start + 4, total))],
            }
            for start in range(0, total, 4)
        ]
        for name, total in count.items()
    }
    state = run_test(Overwriting(), batches, [EmbeddingsWriter(tmp_path / "out", rows_per_unit=6)])
    store = Store.open(tmp_path / "out")
    for name, total in count.items():
        rows = store.load(name)
        assert rows.embeddings[:, 0].tolist() == rows.table["index"].to_pylist() == list(range(total))
        parts = state["seconds"][name]
        everything = ["loader_wait", "copy", "forward", "callbacks", "writer_wait"]
        assert list(parts) == everything, "nothing of a split is under way when the next one begins"
        assert all(seconds >= 0 for seconds in parts.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_copies_of_a_cuda_device_are_of_what_was_computed_before() -> None:
    device = torch.device("cuda")
    pending: PendingOutputs[int] = PendingOutputs(copier_for(device), slots=2)
    memory = torch.zeros(1000, 1000, device=device)
    found = []
    for number in range(20):
        memory.copy_(torch.full((1000, 1000), float(number)))
        pending.add(number, {"embeddings": memory})
        found += [(number, tensors["embeddings"].unique().tolist()) for number, tensors in pending.complete()]
    found += [
        (number, tensors["embeddings"].unique().tolist()) for number, tensors in pending.complete(wait_for_all=True)
    ]
    assert found == [(number, [float(number)]) for number in range(20)]
