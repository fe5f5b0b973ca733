"""Measures the speed of a run."""

from __future__ import annotations

import time
from types import MappingProxyType

from torch import nn

from embedx.engine.callback import Callback
from embedx.engine.state import Batch, Metrics, Outputs, TrainerState


class Throughput(Callback):
    """Counts inputs and seconds from the start of a test to its end.

    Args:
        ahead: The seconds that computing the first batches took before, which count too.
        further: Other measurements to return, by name.
    """

    def __init__(self, ahead: float = 0.0, further: Metrics = MappingProxyType({})) -> None:
        super().__init__()
        self._ahead = ahead
        self._further = further
        self.inputs = 0
        self._start = 0.0
        self._first = 0.0

    def on_test_epoch_start(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Starts the clock."""
        self.inputs = 0
        self._start = self._first = time.perf_counter() - self._ahead

    def on_test_batch_end(
        self,
        trainer_state: TrainerState,
        model: nn.Module,
        outputs: Outputs,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts the batch's inputs."""
        if not self.inputs:
            self._first = time.perf_counter()
        self.inputs += len(batch["index"])

    def on_test_epoch_end(self, trainer_state: TrainerState, model: nn.Module) -> Metrics:
        """Returns inputs, seconds, seconds until the first batch's outputs, images per second, and seconds by purpose.

        The last are, for a split `train`, `loader_wait_seconds/train` and so on: the loop's waiting for the loader, for
        copies to the device, for the forward pass and for the writer, and the time of the other callbacks.
        """
        seconds = time.perf_counter() - self._start
        parts_of = trainer_state["seconds"]
        if self._ahead:
            first = next(iter(parts_of.values()))
            first["forward"] = first.get("forward", 0.0) + self._ahead
        spent = {
            f"{part}_seconds/{split}": round(part_seconds, 3)
            for split, parts in parts_of.items()
            for part, part_seconds in parts.items()
        }
        return {
            "inputs": self.inputs,
            "seconds": round(seconds, 3),
            "first_batch_seconds": round(self._first - self._start, 3),
            "images_per_second": round(self.inputs / seconds, 2) if seconds else 0.0,
            **spent,
            **self._further,
        }
