"""The exponential moving average of a model's weights, which often does better than the last ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from embedx.engine.callback import Callback
from embedx.engine.state import Batch, Outputs, TrainerState


class WeightAverage(Callback):
    """Keeps an average of the weights, average = decay * average + (1 - decay) * weights, and tests with it.

    While a test lasts the model has the average's weights, and afterwards its own again. It stands before a
    checkpoint, which saves both, this one as a part of its own.

    Args:
        decay: The average's share; the first weights count in full.
        epoch_based: Whether the average is taken by epochs, or by steps.
    """

    def __init__(self, decay: float = 0.999, *, epoch_based: bool = False) -> None:
        super().__init__(epoch_based)
        self.decay = decay
        self.weights: dict[str, Tensor] = {}
        """The average, as the model's `state_dict` names it; empty before the first step."""
        self._own: dict[str, Tensor] = {}

    def on_train_batch_end(
        self,
        trainer_state: TrainerState,
        model: nn.Module,
        loss_module: nn.Module,
        outputs: Outputs,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Takes in the weights after a step."""
        if not self.epoch_based:
            self._take_in(model)

    def on_train_epoch_end(self, trainer_state: TrainerState, model: nn.Module, loss_module: nn.Module) -> None:
        """Takes in the weights after an epoch."""
        if self.epoch_based:
            self._take_in(model)

    def on_test_epoch_start(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Gives the model the average."""
        if self.weights:
            self._own = _copy(model.state_dict())
            model.load_state_dict(self.weights)

    def on_test_epoch_end(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Gives the model its own weights back."""
        if self._own:
            model.load_state_dict(self._own)
            self._own = {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what a checkpoint has kept."""
        self.weights = state["weights"]

    @torch.no_grad()
    def _take_in(self, model: nn.Module) -> None:
        now = model.state_dict()
        if not self.weights:
            self.weights = _copy(now)
        for name, average in self.weights.items():
            if average.is_floating_point():
                average.lerp_(now[name], 1 - self.decay)
            else:  # such as a count of batches
                average.copy_(now[name])


def _copy(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in weights.items()}
