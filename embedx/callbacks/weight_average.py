"""Averages a model's weights exponentially over time; the average often predicts better than the last weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from embedx.callbacks.periodic import PeriodicCallback
from embedx.engine.state import TrainerState


class WeightAverage(PeriodicCallback):
    """Keeps an average of the weights, average = decay * average + (1 - decay) * weights, and tests with it.

    During a test the model has the averaged weights, and afterwards its own again. This callback belongs before a
    checkpoint, which can save the average as a part.

    Args:
        decay: The weight of the past in the average, which begins with the first weights.
        epoch_based: True updates the average after every epoch, False after every step.
    """

    def __init__(self, decay: float = 0.999, *, epoch_based: bool = False) -> None:
        super().__init__(epoch_based)
        self.decay = decay
        self.weights: dict[str, Tensor] = {}
        """The average, by the names in the model's `state_dict`; empty before the first step."""
        self._own: dict[str, Tensor] = {}

    @torch.no_grad()
    def act(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Updates the average."""
        now = model.state_dict()
        if not self.weights:
            self.weights = _copy(now)
        for name, average in self.weights.items():
            if average.is_floating_point():
                average.lerp_(now[name], 1 - self.decay)
            else:  # such as a count of batches
                average.copy_(now[name])

    def on_test_epoch_start(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Gives the model the averaged weights."""
        if self.weights:
            self._own = _copy(model.state_dict())
            model.load_state_dict(self.weights)

    def on_test_epoch_end(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Gives the model its own weights back."""
        if self._own:
            model.load_state_dict(self._own)
            self._own = {}

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for a checkpoint."""
        return {"weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state of a checkpoint."""
        self.weights = state["weights"]


def _copy(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in weights.items()}
