"""Ends a fit that gets no better."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import nn

from embedx.engine.callback import Callback
from embedx.engine.state import Batch, Outputs, TrainerState
from embedx.errors import ConfigError, unknown


class EarlyStopping(Callback):
    """Stops once a metric is good enough, or has not improved for a while.

    A `test/` metric is looked at after every test, a `train/` metric after every epoch, or after every step with
    `epoch_based=False`. Callbacks that return the metric stand before this one, a checkpoint behind it.

    Args:
        monitor: The metric's name, such as `test/top1`.
        mode: Whether less is better, or more.
        patience: Looks without improvement after which to stop; None: any number.
        min_delta: What counts as improvement: more than this.
        threshold: A value that is good enough.
        epoch_based: Whether a `train/` metric is looked at by epochs, or by steps.
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
        """Looks since the last improvement."""
        self._sign = 1 if mode == "min" else -1
        self._best = math.inf

    def on_train_batch_end(
        self,
        trainer_state: TrainerState,
        model: nn.Module,
        loss_module: nn.Module,
        outputs: Outputs,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Looks at a metric of the steps."""
        if not self.epoch_based and self.monitor.startswith("train/"):
            self._look(trainer_state)

    def on_train_epoch_end(self, trainer_state: TrainerState, model: nn.Module, loss_module: nn.Module) -> None:
        """Looks at a metric of the epochs."""
        if self.epoch_based and self.monitor.startswith("train/"):
            self._look(trainer_state)

    def on_test_epoch_end(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Looks at a metric of the test."""
        if self.monitor.startswith("test/"):
            self._look(trainer_state)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"best": self._best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what a checkpoint has kept."""
        self._best, self.waited = state["best"], state["waited"]

    def _look(self, trainer_state: TrainerState) -> None:
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
