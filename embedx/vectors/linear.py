"""The linear probe: multinomial logistic regression on standardised features.

What is minimised is mean cross-entropy + l2 / 2 * |weights|^2, the bias going free: that of scikit-learn's
LogisticRegression with C = 1 / (l2 * rows), or twice that of two classes, as it has one vector for both. The problem is
convex, so that there is one answer, and L-BFGS finds it (see lbfgs.py): an epoch of the fit loop is a pass over the
rows, batch by batch, and at its end the weights are updated. All is computed in float64: in float32 rounding errors
hide the last steps, and hundreds of passes go into looking for them.

Shapes: N rows, n of a batch, D embedding dimension, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedx.callbacks.checkpoint import Checkpoint, Stateful
from embedx.callbacks.early_stopping import EarlyStopping
from embedx.callbacks.evaluator import Evaluator
from embedx.callbacks.metrics_log import MetricsLog
from embedx.engine.callback import Callback
from embedx.engine.connectors import DataConnector, LossConnector, data_key, pred_key
from embedx.engine.fit import Schedule, run_fit
from embedx.engine.state import Batch, Metrics, TrainerState
from embedx.errors import ConfigError
from embedx.heartbeat import Heartbeat
from embedx.vectors.lbfgs import LBFGS

EMBEDDINGS = DataConnector({"embeddings": "embeddings"})
CROSS_ENTROPY = LossConnector({"input": pred_key("logits"), "target": data_key("targets")})
STRENGTHS = tuple(10.0**power for power in range(2, -7, -1))
"""L2 strengths that are tried, from the strongest to the weakest."""
HELD_OUT = 0.2
"""Share of each class's rows that the strengths are compared on."""
TOLERANCE = 1e-5
"""Largest entry of the gradient at which a fit has come to its end."""
MOST_EPOCHS = 1000
_CHECKPOINT_SECONDS = 5.0
_LOG_EPOCHS = 100


class LinearHead(nn.Module):
    """Standardises features and maps them to logits, in float64.

    Args:
        mean: [D] float64, subtracted.
        std: [D] float64, divided by.
        num_classes: C.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.weight = nn.Parameter(mean.new_zeros(num_classes, len(mean)))
        self.bias = nn.Parameter(mean.new_zeros(num_classes))

    def forward(self, embeddings: Tensor) -> dict[str, Tensor]:
        """From [n, D] to `logits` [n, C]."""
        weight = self.weight / self.std  # the few weights are scaled, and not the many rows: exact enough in float64
        return {"logits": functional.linear(embeddings.double(), weight, self.bias - weight @ self.mean)}


class Convergence(Callback):
    """Returns the gradient's largest entry, as `slope`, and whether the search has ended, as `converged`."""

    def __init__(self, optimizer: LBFGS) -> None:
        super().__init__()
        self.optimizer = optimizer

    def on_train_epoch_end(self, trainer_state: TrainerState, model: nn.Module, loss_module: nn.Module) -> Metrics:
        """Returns both."""
        return {"slope": self.optimizer.slope, "converged": int(self.optimizer.converged)}


@dataclasses.dataclass(frozen=True)
class LinearFit:
    """A head, and how it came about."""

    head: LinearHead
    l2: float
    epochs: int
    """Passes over the rows."""
    converged: bool
    metrics: Mapping[str, float]
    """Of the last epoch, as `train/name`, and of the test, if there was one, as `test/name`."""


def fit_linear(
    features: Iterable[Batch],
    num_classes: int,
    l2: float,
    *,
    held_out: Iterable[Batch] | None = None,
    start: LinearHead | None = None,
    folder: Path | None = None,
    about: Mapping[str, Any] | None = None,
    resume: bool = False,
    heartbeat: Heartbeat,
) -> LinearFit:
    """Fits a head.

    Args:
        features: Batches of `embeddings` [n, D], `targets` [n] and `index` [n].
        num_classes: C.
        l2: Strength.
        held_out: The same, to test the head on.
        start: The head from whose weights to begin; None: from zeros.
        folder: For a checkpoint, by which an interrupted fit can go on; None: none is written.
        about: What the checkpoint is of.
        resume: Whether to go on from there.
        heartbeat: Where progress goes.

    Returns:
        The head; the same, to the bit, for the same batches.
    """
    heartbeat.say(f"fitting at l2 {l2:g}")
    head = LinearHead(*moments(features), num_classes)
    if start is not None:
        with torch.no_grad():
            head.weight.copy_(start.weight)
            head.bias.copy_(start.bias)
    optimizer = LBFGS([head.weight, head.bias], l2, TOLERANCE)
    callbacks: list[Callback] = [
        Evaluator(num_classes),
        Convergence(optimizer),
        EarlyStopping("train/converged", "max", threshold=1),
        MetricsLog(heartbeat, f"l2 {l2:g}", _LOG_EPOCHS, epoch_based=True),
    ]
    state = None
    if folder is not None:
        parts: dict[str, Stateful] = {"head": head, "optimizer": optimizer}
        checkpoint = Checkpoint(folder, parts, {**(about or {}), "l2": l2}, seconds=_CHECKPOINT_SECONDS)
        callbacks.append(checkpoint)
        state = checkpoint.restore() if resume else None
    state = run_fit(
        head,
        nn.CrossEntropyLoss(),
        optimizer,
        features,
        callbacks,
        Schedule(MOST_EPOCHS, batches_per_update=None),
        loss_connector=CROSS_ENTROPY,
        connector=EMBEDDINGS,
        test_dataloaders={"held out": held_out} if held_out is not None else None,
        state=state,
    )
    optimizer.settle()
    metrics = {name: float(value) for name, value in state["metrics"].items()}
    return LinearFit(head.eval(), l2, state["current_epoch"] + 1, optimizer.converged, metrics)


def moments(features: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [D] float64 of the rows; a feature that does not vary has 1.

    Batch by batch, by Chan's formula (Chan, Golub & LeVeque 1979, Updating formulae and a pairwise algorithm).
    """
    count = 0
    mean = squares = torch.zeros(1, dtype=torch.float64)
    for batch in features:
        rows = batch["embeddings"].double()
        own_mean = rows.mean(dim=0)
        own_squares = (rows - own_mean).square().sum(dim=0)
        total = count + len(rows)
        shift = own_mean - mean
        squares = squares + own_squares + shift.square() * count * len(rows) / total
        mean = mean + shift * len(rows) / total
        count = total
    std = (squares / count).sqrt()
    return mean, torch.where(std > 1e-12 * mean.abs(), std, 1.0)


def choose_held_out(targets: Tensor, seed: int) -> Tensor:
    """[N] bool: a fifth of each class's rows, one at least, but never a class's only one.

    Args:
        targets: [N] int64, from 0 on.
        seed: Of the choice.

    Raises:
        ConfigError: If no class has two rows.
    """
    shuffled = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    order = shuffled[targets[shuffled].sort(stable=True).indices]  # class by class, at random within each
    sizes = targets.bincount()
    shares = torch.where(sizes > 1, (HELD_OUT * sizes).round().clamp(min=1), 0)
    places = torch.arange(len(targets)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    held_out = torch.zeros(len(targets), dtype=torch.bool)
    held_out[order[places < shares.repeat_interleave(sizes)]] = True
    if not held_out.any():
        raise ConfigError("no class of the train split has a second row to hold out; give the strength by --l2")
    return held_out


def best_strength(fits: Sequence[LinearFit]) -> float:
    """The L2 strength with the least cross-entropy on what was held out."""
    return min(fits, key=lambda fit: fit.metrics["test/loss"]).l2
