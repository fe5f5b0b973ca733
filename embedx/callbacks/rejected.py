"""Counts rejected inputs."""

from __future__ import annotations

from collections import Counter

from torch import nn

from embedx.engine.callback import Callback
from embedx.engine.state import Batch, Metrics, Outputs, TrainerState
from embedx.errors import InputError
from embedx.values import OnError


class RejectedInputs(Callback):
    """Counts rejected inputs by dataloader; the count is the metric `rejected`.

    Args:
        on_error: The reaction to a rejected input: `reject` goes on, `fail` ends the run.
    """

    def __init__(self, on_error: OnError = "reject") -> None:
        super().__init__()
        self.on_error = on_error
        self.counts: Counter[int] = Counter()

    def on_test_epoch_start(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Resets the counts."""
        self.counts.clear()

    def on_test_batch_end(
        self,
        trainer_state: TrainerState,
        model: nn.Module,
        outputs: Outputs,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts the batch's rejected inputs.

        Raises:
            InputError: If there is one and `on_error` is `fail`; it names the input and the reason.
        """
        for key, reason in zip(batch["keys"], batch.get("reasons", ()), strict=False):
            if reason is not None:
                self.counts[dataloader_idx] += 1
                if self.on_error == "fail":
                    raise InputError(f"{key}: {reason}; repair or remove it, or go on without it by --on-error reject")

    def on_test_epoch_end(self, trainer_state: TrainerState, model: nn.Module) -> Metrics:
        """Returns the count."""
        return {"rejected": self.counts.total()}
