"""What a fit tells: every so many steps or epochs, smoothed, plain lines or a line that stays."""

from __future__ import annotations

import re
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from embedx.callbacks.metrics_log import MetricsLog
from embedx.engine.callback import Callback
from embedx.engine.fit import Schedule
from embedx.heartbeat import Heartbeat
from tests.callbacks.fits import Given, batches, fit
from tests.runs import written

pytestmark = pytest.mark.usefixtures("one_thread")


class Losses(Callback):
    """Notes the loss of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []

    def on_train_batch_end(self, trainer_state: Any, *args: Any) -> None:
        self.values.append(float(trainer_state["metrics"]["train/loss"]))


def smoothed(losses: list[float], smoothing: float = 0.9) -> float:
    """The weighted mean in which a loss counts `smoothing` times as much as the one after it."""
    weights = [smoothing**age for age in reversed(range(len(losses)))]
    return sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)


def lines(schedule: Schedule, *callbacks: Callback, terminal: bool = False, **options: Any) -> list[str]:
    console = Console(file=StringIO(), force_terminal=terminal, width=100, _environ={"TERM": "xterm-256color"})
    with Heartbeat(console) as heartbeat:
        fit(schedule, *callbacks, MetricsLog(heartbeat, "probe", **options), tests={"val": batches(1)})
    return [
        re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|^\d{4}-\d\d-\d\d [\d:]{8} ", "", line) for line in written(console).splitlines()
    ]


def test_a_line_every_so_many_steps_tells_the_smoothed_loss_and_the_rate() -> None:
    losses = Losses()
    told = lines(Schedule(7, epoch_based=False), Given("train/x", range(9)), losses, every=3)
    found = [re.fullmatch(r"probe: step (\d), loss ([\d.]+)(?:, x (\d))?, [\d.]+ steps/s", line) for line in told]
    assert [match and (match[1], match[3]) for match in found] == [("3", None), ("6", "0")]
    for match, count in zip(found, (3, 6), strict=True):
        assert match and float(match[2]) == pytest.approx(smoothed(losses.values[:count]), rel=1e-3)


def test_epochs_can_be_counted_instead_and_other_metrics_told_beside() -> None:
    told = lines(Schedule(4), Given("train/top1", [0.1, 0.2, 0.3, 0.4]), every=2, epoch_based=True)
    assert [re.sub(r"[\d.]+ epochs/s|loss [\d.]+", "…", line) for line in told] == [
        "probe: epoch 2, …, top1 0.2, …",
        "probe: epoch 4, …, top1 0.4, …",
    ]


def test_a_test_s_metrics_are_told_each_time() -> None:
    told = lines(Schedule(2, test_every=1), Given("test/top1", [0.25, 0.75]), every=100)
    assert told == ["probe: test after step 3, top1 0.25", "probe: test after step 6, top1 0.75"]


def test_on_a_terminal_the_line_stays_and_only_tests_leave_one() -> None:
    told = lines(Schedule(2, test_every=1), Given("test/top1", [0.25, 0.75]), terminal=True, every=1)
    text = "\n".join(told)
    assert "probe: test after step 3, top1 0.25" in text and re.search(r"[⠀-⣿] probe: step \d", text)
