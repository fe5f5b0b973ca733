"""Logs the progress of a fit: smoothed loss, other metrics and rate."""

from __future__ import annotations

import time

from torch import nn

from embedx.callbacks.periodic import PeriodicCallback
from embedx.engine.state import TrainerState
from embedx.heartbeat import Heartbeat


class MetricsLog(PeriodicCallback):
    """Logs metrics every few steps or epochs, and after each test.

    On a terminal the training metrics stand in one line that is updated; elsewhere, and for a test, each log is a new
    line. This callback belongs behind those whose metrics it logs.

    Args:
        heartbeat: The heartbeat that writes to stderr.
        title: The name of the fit, with which each line begins.
        every: The number of steps, or epochs, from one line to the next.
        smoothing: The weight of the past in the smoothed loss, an exponential mean corrected for its bias to 0.
        epoch_based: True counts and smooths by epochs, False by steps.
    """

    def __init__(
        self,
        heartbeat: Heartbeat,
        title: str = "fit",
        every: int = 50,
        smoothing: float = 0.9,
        *,
        epoch_based: bool = False,
    ) -> None:
        super().__init__(epoch_based)
        self.title = title
        self.every = every
        self.smoothing = smoothing
        self._unit = "epoch" if epoch_based else "step"
        self._heartbeat = heartbeat
        self._sum = 0.0
        self._seen = 0
        self._since = 0.0
        self._logged_at = 0

    def on_train_epoch_start(self, trainer_state: TrainerState, model: nn.Module, loss_module: nn.Module) -> None:
        """Starts the clock in the first epoch."""
        if not self._since:
            self._since = time.perf_counter()
            self._logged_at = self.done(trainer_state) - self.epoch_based

    def act(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Adds the loss of an epoch or step, and logs it if that is due."""
        self._sum = self.smoothing * self._sum + (1 - self.smoothing) * float(trainer_state["metrics"]["train/loss"])
        self._seen += 1
        done, now = self.done(trainer_state), time.perf_counter()
        if done % self.every:
            return
        rate = (done - self._logged_at) / max(now - self._since, 1e-9)
        self._logged_at, self._since = done, now
        loss = self._sum / (1 - self.smoothing**self._seen)
        others = _text(trainer_state, "train/", without="loss")
        line = f"{self.title}: {self._unit} {done}, loss {loss:.4g}{others}, {rate:.1f} {self._unit}s/s"
        if self._heartbeat.is_bar:
            self._heartbeat.say(line)
        else:
            self._heartbeat.tell(line)

    def on_test_epoch_end(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Logs the test's metrics."""
        if metrics := _text(trainer_state, "test/"):
            self._heartbeat.tell(f"{self.title}: test after {self._unit} {self.done(trainer_state)}{metrics}")


def _text(state: TrainerState, stage: str, without: str = "") -> str:
    return "".join(
        f", {name.removeprefix(stage)} {float(value):.4g}"
        for name, value in state["metrics"].items()
        if name.startswith(stage) and name != stage + without
    )
