"""Ends a fit that no longer improves."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import nn

from embedx.callbacks.periodic import PeriodicCallback
from embedx.engine.state import TrainerState
from embedx.errors import ConfigError, unknown


class EarlyStopping(PeriodicCallback):
    """Stops a fit once a metric is good enough, or has not improved for a while.

    A `test/` metric is checked after every test, a `train/` metric after every epoch, or after every step with
    `epoch_based=False`. This callback belongs behind those that return the metric, and before a checkpoint.

    Args:
        monitor: The metric's name, such as `test/top1`.
        mode: The direction of better values, `min` or `max`.
        patience: The number of checks without improvement after which to stop; None never stops for that.
        min_delta: The change above which a better value counts as an improvement.
        threshold: The value that is good enough; None never stops for that.
        epoch_based: True checks a `train/` metric after every epoch, False after every step.
    """

    def __init__(
        self,
        monitor: str,
        mode: Literal["min", "max"] = "min",
        *,
        patience: int | None = None,
        min_delta: float = 0.0,
        threshold: float | None = None,
        epoch_based: bool = True,
    ) -> None:
        super().__init__(epoch_based)
        self.monitor = monitor
        self.patience = patience
        self.min_delta = min_delta
        self.threshold = threshold
        self.waited = 0
        """The number of checks since the last improvement."""
        self._sign = 1 if mode == "min" else -1
        self._best = math.inf

    def act(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Checks a metric of the training."""
        if self.monitor.startswith("train/"):
            self._check(trainer_state)

    def on_test_epoch_end(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Checks a metric of the test."""
        if self.monitor.startswith("test/"):
            self._check(trainer_state)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for a checkpoint."""
        return {"best": self._best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state of a checkpoint."""
        self._best, self.waited = state["best"], state["waited"]

    def _check(self, trainer_state: TrainerState) -> None:
        metrics = trainer_state["metrics"]
        if self.monitor not in metrics:
            raise ConfigError(f"EarlyStopping: {unknown('metric', self.monitor, metrics)}")
        value = self._sign * float(metrics[self.monitor])
        if value < self._best - self.min_delta:
            self._best, self.waited = value, 0
        else:
            self.waited += 1
        if (self.patience is not None and self.waited >= self.patience) or (
            self.threshold is not None and value <= self._sign * self.threshold
        ):
            trainer_state["should_stop"] = True
