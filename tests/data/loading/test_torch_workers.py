"""How torch's DataLoader behaves when its workers fail, provoked with real workers."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from embedx.data.loading import torch_workers
from embedx.data.loading.circumstances import UNREAD
from embedx.data.loading.isolation import Held, InHand
from embedx.data.loading.torch_workers import BatchError, TorchWorkers, WorkerLostError, is_out_of_memory
from embedx.system.processes import CHILDREN, start_fork_server


@pytest.fixture(autouse=True, scope="module")
def fork_server() -> None:
    start_fork_server()


class Steps(Dataset[Any]):
    """Does what the order of a batch says, in the worker, and returns it as a tensor's entry."""

    def __init__(self, in_hand: InHand) -> None:
        self.in_hand = in_hand

    def __getitems__(self, orders: list[str]) -> dict[str, Any]:
        step, _, value = orders[0].partition(" ")
        with self.in_hand.hold(7):
            if step == "kill":
                os.kill(os.getpid(), signal.Signals[value])
            elif step == "sleep":
                time.sleep(float(value))
            elif step == "raise":
                time.sleep(1.5)
                raise {"RuntimeError": RuntimeError, "EOFError": EOFError, "OSError": FileNotFoundError}[value]("no")
        if step == "idle":
            time.sleep(float(value))
        if step == "unsendable":
            return {"order": lambda: None}
        return {"order": orders[0], "images": torch.zeros(1 << 16)}


def workers_on(*orders: str, workers: int = 1, timeout: float = 60.0) -> TorchWorkers:
    in_hand = InHand(workers)
    batches: Any = [[order] for order in orders]
    return TorchWorkers(Steps(in_hand), batches, in_hand, timeout=timeout, pin_memory=False)


@pytest.mark.soak
def test_a_batch_that_takes_longer_than_a_poll_is_waited_for_and_none_is_lost() -> None:
    orders = ["sleep 2.5", "ok", "sleep 1.5", "fine"]
    for workers in (1, 2):
        assert [batch["order"] for batch in workers_on(*orders, workers=workers)] == orders


@pytest.mark.soak
def test_a_dataloader_without_a_batch_in_time_raises_a_runtime_error_and_not_before() -> None:
    loader = DataLoader(
        Steps(InHand(1)), batch_sampler=[["sleep 60"]], num_workers=1, timeout=1, multiprocessing_context=CHILDREN
    )
    waiting = iter(loader)
    begun = time.monotonic()
    with pytest.raises(RuntimeError):
        next(waiting)
    assert time.monotonic() - begun > 0.9


@pytest.mark.parametrize("order", ["kill SIGKILL", "kill SIGSEGV"])
def test_a_worker_that_a_signal_ends_is_lost_with_its_row(order: str) -> None:
    workers = workers_on(order, "ok")
    with pytest.raises(WorkerLostError):
        next(workers)
    assert workers.rows_in_hand() == ({}, {7})


def test_a_batch_whose_worker_died_before_its_memory_was_asked_for_is_lost() -> None:
    """The tensors of a batch stay with its worker until the parent asks for them, which then fails by OSError."""
    workers = workers_on("ok", "ok", "sleep 60")
    assert next(workers)["order"] == "ok"
    time.sleep(0.5)  # until the second batch is ready, and the worker is at the third
    (process,) = workers._processes.values()
    process.kill()
    process.join()
    with pytest.raises(WorkerLostError):
        list(workers)


@pytest.mark.parametrize(
    "error", ["EOFError", *(pytest.param(one, marks=pytest.mark.soak) for one in ("RuntimeError", "OSError"))]
)
def test_an_error_of_a_batch_is_not_taken_for_one_of_the_dataloader_however_late_it_comes(error: str) -> None:
    workers = workers_on(f"raise {error}", "ok")
    with pytest.raises(BatchError, match=r"(?s)Traceback.*test_torch_workers.*no"):
        next(workers)
    with pytest.raises(RuntimeError if error == "RuntimeError" else (EOFError, OSError)):
        next(workers_on(f"raise {error}", workers=0))


def test_a_worker_that_does_not_come_back_is_ended_with_its_row() -> None:
    workers = workers_on("sleep 60", timeout=0.5)
    with pytest.raises(WorkerLostError):
        next(workers)
    assert workers.rows_in_hand() == ({7: UNREAD}, set())
    assert (
        Held(1, 7, 6.0, True).is_stuck(0.5)
        and Held(1, 7, 6.0, True).is_overdue(0.5)
        and not Held(1, 7, 0.0, True).is_stuck(0.5)
    )


def test_time_in_which_a_worker_alone_is_suspended_does_not_count() -> None:
    workers = workers_on("sleep 1", timeout=2.5)
    wait_until_held(workers)
    (process,) = workers._processes.values()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    threading.Timer(4, os.kill, (process.pid, signal.SIGCONT)).start()
    assert next(workers)["order"] == "sleep 1"


def wait_until_held(workers: TorchWorkers) -> None:
    while not workers._in_hand.now():
        time.sleep(0.01)


def test_workers_that_have_nothing_in_hand_are_lost_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_workers, "_IDLE_SECONDS", 1.5)
    with pytest.raises(WorkerLostError):
        next(workers_on("idle 60"))


def test_a_batch_that_can_t_be_sent_is_lost_with_its_worker_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(WorkerLostError):
        list(workers_on("ok", "unsendable"))
    assert time.monotonic() - started < torch_workers._IDLE_SECONDS / 3


def test_more_workers_than_cores_are_no_cause_for_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    with pytest.warns(UserWarning, match="worker"):  # torch still has that warning
        DataLoader(TensorDataset(torch.zeros(2)), num_workers=2)
    assert [batch["order"] for batch in workers_on("a", "b", workers=2)] == ["a", "b"]


def test_torch_s_lack_of_memory_is_told_from_its_other_errors() -> None:
    with pytest.raises(RuntimeError) as short:
        torch.empty(1 << 50)
    with pytest.raises(RuntimeError) as other:
        torch.zeros(2) + torch.zeros(3)
    assert is_out_of_memory(short.value) and is_out_of_memory(MemoryError()) and not is_out_of_memory(other.value)
    for one in ("DefaultCPUAllocator: no room", "the allocator is out of memory"):
        assert is_out_of_memory(RuntimeError(one)), "one of the two is enough"
