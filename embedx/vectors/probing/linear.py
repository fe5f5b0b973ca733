"""The linear probe: multinomial logistic regression on standardised features.

It minimises mean cross-entropy + l2 / 2 * |weights|^2, the bias going free. This is the loss of scikit-learn's
LogisticRegression with C = 1 / (l2 * rows); of two classes it is twice that, as scikit-learn has one vector for both.
The problem is convex, so it has one answer, and torch's L-BFGS finds it: a step of the fit loop is one iteration over
the whole split, and a pass over the rows for each evaluation of its line search, mostly one.

Shapes: N rows of a split, n of a batch, D embedding dimension, C classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embedx.callbacks.checkpoint import Checkpoint
from embedx.callbacks.early_stopping import EarlyStopping
from embedx.callbacks.evaluator import Evaluator
from embedx.callbacks.metrics_log import MetricsLog
from embedx.engine.callback import Callback
from embedx.engine.connectors import LossConnector, pred_key
from embedx.engine.fit import Schedule, run_fit
from embedx.engine.state import Batch, Metrics, Outputs, TrainerState
from embedx.errors import ConfigError
from embedx.heartbeat import Heartbeat
from embedx.system.machine import physical_memory
from embedx.values import size_text
from embedx.vectors.probing.linear_head import EMBEDDINGS_INPUT, LinearHead, SplitLoss, moments

STRENGTHS = tuple(10.0**power for power in range(2, -7, -1))
"""The L2 strengths that are tried, from the strongest to the weakest."""
HELD_OUT = 0.2
"""The share of each class's rows on which the strengths are compared."""
TOLERANCE = 1e-5
"""The largest entry of the gradient at which a fit has converged."""
MOST_EPOCHS = 1000
_LINE_SEARCH = 25
"""The largest number of evaluations in one line search."""
_HISTORY = 10
"""The number of steps that L-BFGS remembers."""
_COPIES = 2 * _HISTORY + len(STRENGTHS) + 16
"""The number of copies of a head that are in memory: two for each step, one for each strength, and those of a step."""
_CHECKPOINT_SECONDS = 5.0
_LOG_EPOCHS = 100


class Convergence(Callback):
    """Returns after each step the `loss`, `top1` and `slope` of the new weights, and whether the fit has `converged`.

    It has if the slope is at most TOLERANCE, or if the step brought no decrease: then what is left to gain is below the
    precision of float64.
    """

    def __init__(self, model: SplitLoss) -> None:
        super().__init__()
        self.model = model
        self._before = math.inf

    def on_train_batch_start(
        self, trainer_state: TrainerState, model: nn.Module, loss_module: nn.Module, batch: Batch, batch_idx: int
    ) -> None:
        """Keeps the objective before the step."""
        self._before = float(self.model.evaluate(batch["embeddings"]).objective)

    def on_train_batch_end(
        self,
        trainer_state: TrainerState,
        model: nn.Module,
        loss_module: nn.Module,
        outputs: Outputs,
        batch: Batch,
        batch_idx: int,
    ) -> Metrics:
        """Returns the metrics of the new weights."""
        after = self.model.evaluate(batch["embeddings"])
        converged = after.slope <= TOLERANCE or float(after.objective) >= self._before
        return {"loss": after.loss, "top1": after.top1, "slope": after.slope, "converged": int(converged)}


@dataclasses.dataclass(frozen=True)
class LinearFit:
    """A fitted head and how the fit went."""

    head: LinearHead
    l2: float
    """The strength of the penalty."""
    epochs: int
    """The number of L-BFGS iterations; each takes one pass over the rows, or a few."""
    converged: bool
    """True if the fit came to its end, False if MOST_EPOCHS cut it off."""
    metrics: Mapping[str, float]
    """The last epoch's metrics as `train/name`, and those of the test, if there was one, as `test/name`."""


def fit_linear(
    rows: Iterable[Batch],
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
        rows: The split to learn from: batches of `embeddings` [n, D] and `targets` [n], iterated many times.
        num_classes: The number of classes, C.
        l2: The strength of the penalty on the weights.
        held_out: The batches to test the head on, with `index` [n] as well; None tests nothing.
        start: The head from whose weights to begin; None begins with zeros.
        folder: The folder for a checkpoint, from which an interrupted fit can go on; None writes none.
        about: The facts on which the fit depends, as plain JSON values; a checkpoint of other facts is refused.
        resume: True goes on from the checkpoint in `folder`, if there is one.
        heartbeat: The receiver of progress.

    Returns:
        The fit; its head is the same, to the bit, for the same batches, interrupted or not.
    """
    heartbeat.say(f"fitting at l2 {l2:g}")
    head = LinearHead(*moments(rows), num_classes)
    if start is not None:
        with torch.no_grad():
            head.weight.copy_(start.weight)
            head.bias.copy_(start.bias)
    model = SplitLoss(head, l2)
    optimizer = torch.optim.LBFGS(
        head.parameters(),
        max_iter=1,
        max_eval=1 + _LINE_SEARCH,
        tolerance_grad=0,
        tolerance_change=0,  # Convergence decides when to stop
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )
    callbacks: list[Callback] = [
        Evaluator(num_classes, train_connector=None),
        Convergence(model),
        EarlyStopping("train/converged", "max", threshold=1),
        MetricsLog(heartbeat, f"l2 {l2:g}", _LOG_EPOCHS, epoch_based=True),
    ]
    state = None
    if folder is not None:
        about = {**(about or {}), "l2": l2}
        checkpoint = Checkpoint(folder, {"head": head, "optimizer": optimizer}, about, seconds=_CHECKPOINT_SECONDS)
        callbacks.append(checkpoint)
        state = checkpoint.restore() if resume else None
    state = run_fit(
        model,
        nn.Identity(),
        optimizer,
        [{"embeddings": rows}],  # the whole split is one batch
        callbacks,
        Schedule(MOST_EPOCHS),
        loss_connector=LossConnector({"input": pred_key("objective")}),
        connector=EMBEDDINGS_INPUT,
        test_dataloaders={"held out": held_out} if held_out is not None else None,
        state=state,
    )
    metrics = {name: float(value) for name, value in state["metrics"].items()}
    return LinearFit(head.eval(), l2, state["current_epoch"] + 1, bool(metrics["train/converged"]), metrics)


def check_memory(num_classes: int, dim: int) -> None:
    """Raises a ConfigError if a fit of so many classes and numbers a row takes more memory than the machine has."""
    needed = _COPIES * torch.float64.itemsize * num_classes * (dim + 1)
    if needed > physical_memory():
        raise ConfigError(
            f"fitting a head of {num_classes:,} classes x {dim:,} numbers takes {size_text(needed)}, and this machine "
            f"has {size_text(physical_memory())} of memory; choose fewer classes, or give --method knn, which fits none"
        )


def choose_held_out(targets: Tensor, seed: int) -> Tensor:
    """Chooses a fifth of each class's rows, one at least, but never a class's only one, as a mask [N] bool.

    The `targets` [N] are the classes' numbers, from 0 on. That no class has two rows is a ConfigError.
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
    """Returns the L2 strength with the least cross-entropy on the rows that were held out."""
    return min(fits, key=lambda fit: fit.metrics["test/loss"]).l2
