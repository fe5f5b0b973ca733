"""The base class of callbacks that act after every epoch, or after every step."""

from __future__ import annotations

from torch import nn

from embedx.engine.callback import Callback
from embedx.engine.state import Batch, Outputs, TrainerState


class PeriodicCallback(Callback):
    """Acts after every epoch if it is `epoch_based`, and else after every step."""

    def act(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Acts at the end of an epoch or step."""

    def done(self, trainer_state: TrainerState) -> int:
        """Returns the number of epochs or steps done, the current one included."""
        return trainer_state["current_epoch"] + 1 if self.epoch_based else trainer_state["global_step"]

    def on_train_batch_end(
        self,
        trainer_state: TrainerState,
        model: nn.Module,
        loss_module: nn.Module,
        outputs: Outputs,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Acts after a step."""
        if not self.epoch_based:
            self.act(trainer_state, model)

    def on_train_epoch_end(self, trainer_state: TrainerState, model: nn.Module, loss_module: nn.Module) -> None:
        """Acts after an epoch."""
        if self.epoch_based:
            self.act(trainer_state, model)
