"""A small fit, for callbacks to take part in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from embedx.engine.callback import Callback
from embedx.engine.connectors import LossConnector, data_key, pred_key
from embedx.engine.fit import Schedule, run_fit
from embedx.engine.state import Batch, TrainerState

LOSS = LossConnector({"input": pred_key("logits"), "target": data_key("targets")})


class Classifier(nn.Module):
    """Logits of three classes, and a count that is no float."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("seen", torch.tensor(0))
        with torch.no_grad():
            self.layer.weight.copy_(torch.linspace(-1, 1, 12).view(3, 4))
            self.layer.bias.zero_()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if self.training:
            self.seen += len(images)
        return {"logits": self.layer(images)}


def batches(count: int, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "images": torch.randn(8, 4, generator=generator),
            "targets": torch.randint(0, 3, (8,), generator=generator),
            "index": torch.arange(8),
        }
        for _ in range(count)
    ]


class Given(Callback):
    """Returns these values of a metric, one after each test, or after each epoch or step."""

    def __init__(self, name: str, values: Sequence[float], *, epoch_based: bool = True) -> None:
        super().__init__(epoch_based)
        self.stage, self.name = name.split("/")
        self.values = list(values)

    def on_train_batch_end(self, *args: Any) -> dict[str, float] | None:
        return self._next(self.stage == "train" and not self.epoch_based)

    def on_train_epoch_end(self, *args: Any) -> dict[str, float] | None:
        return self._next(self.stage == "train" and self.epoch_based)

    def on_test_epoch_end(self, *args: Any) -> dict[str, float] | None:
        return self._next(self.stage == "test")

    def _next(self, due: bool) -> dict[str, float] | None:
        return {self.name: self.values.pop(0)} if due else None


def fit(
    schedule: Schedule,
    *callbacks: Callback,
    model: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    tests: Mapping[str, list[Batch]] | None = None,
    state: TrainerState | None = None,
) -> TrainerState:
    model = model or Classifier()
    return run_fit(
        model,
        nn.CrossEntropyLoss(),
        optimizer or torch.optim.SGD(model.parameters(), lr=0.1),
        batches(3),
        callbacks,
        schedule,
        loss_connector=LOSS,
        test_dataloaders=tests,
        state=state,
    )
