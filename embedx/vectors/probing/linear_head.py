"""The linear probe's model, and its loss over a whole split, read batch by batch.

Everything is computed in float64: in float32 rounding errors hide the last steps of a fit, and hundreds of passes over
the rows go into looking for them.

Shapes: N rows of a split, n of a batch, D embedding dimension, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedx.engine.connectors import DataConnector
from embedx.engine.state import Batch

EMBEDDINGS_INPUT = DataConnector({"embeddings": "embeddings"})


class LinearHead(nn.Module):
    """Standardises features and maps them to logits, in float64.

    Args:
        mean: The mean [D] float64, which is subtracted.
        std: The standard deviation [D] float64, by which is divided.
        num_classes: The number of classes, C.
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
        """Maps [n, D] to `logits` [n, C]."""
        weight = self.weight / self.std  # the few weights are scaled, and not the many rows: exact enough in float64
        return {"logits": functional.linear(embeddings.double(), weight, self.bias - weight @ self.mean)}


def moments(batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Computes mean and standard deviation [D] float64 of the rows; a feature that does not vary gets 1.

    Goes batch by batch, by Chan's formula (Chan, Golub & LeVeque 1979, Updating formulae and a pairwise algorithm).
    """
    count = 0
    mean = squares = torch.zeros(1, dtype=torch.float64)
    for batch in batches:
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


class Evaluation(NamedTuple):
    """The loss of a head over a split, and its gradients."""

    parameters: list[Tensor]
    """A copy of the head's parameters at the time."""
    objective: Tensor
    """The scalar to minimise: N * (`loss` + l2 / 2 * the weights' squared norm)."""
    gradients: list[Tensor]
    """The gradients of `objective`, one per parameter."""
    loss: float
    """The mean cross-entropy."""
    top1: float
    """The share of the rows whose class has the largest logit."""
    slope: float
    """The largest absolute entry of the gradients, divided by N."""


class SplitLoss(nn.Module):
    """A head that, called with a whole split, returns its loss, and with a batch of embeddings, its logits.

    Each batch's gradient is taken before the next batch is read, so the memory needed does not grow with the split. The
    last evaluation is kept: where a step of torch.optim.LBFGS begins with the weights at which its last line search
    ended, as it mostly does, the split is read once for both. The objective is a sum over the rows, not their mean, as
    that optimizer forgets steps whose curvature is below 1e-10, whatever the scale of the loss.

    Args:
        head: The head. Its bias is not penalised.
        l2: The strength of the penalty on the head's weights.
    """

    def __init__(self, head: LinearHead, l2: float) -> None:
        super().__init__()
        self.head = head
        self.l2 = l2
        self._last: Evaluation | None = None

    def forward(self, embeddings: Tensor | Iterable[Batch]) -> dict[str, Tensor]:
        """Maps a batch [n, D] to `logits` [n, C], and a split's batches to `objective`, a scalar."""
        if isinstance(embeddings, Tensor):
            logits: dict[str, Tensor] = self.head(embeddings)
            return logits
        evaluation = self.evaluate(embeddings)
        # Adds zero, so that `backward` finds the gradients that have been taken batch by batch.
        pairs = zip(self.head.parameters(), evaluation.gradients, strict=True)
        zeros = [((parameter - parameter.detach()) * gradient).sum() for parameter, gradient in pairs]
        return {"objective": evaluation.objective + torch.stack(zeros).sum()}

    def evaluate(self, batches: Iterable[Batch]) -> Evaluation:
        """Returns the loss over the split, always the same one; reads it only if the parameters have changed since."""
        parameters = list(self.head.parameters())
        if self._last is None or not all(map(torch.equal, parameters, self._last.parameters)):
            self._last = self._evaluate(batches, parameters)
        return self._last

    @torch.enable_grad()
    def _evaluate(self, batches: Iterable[Batch], parameters: list[nn.Parameter]) -> Evaluation:
        rows, hits, loss = 0, 0, torch.zeros((), dtype=torch.float64)
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        for batch in batches:
            logits, targets = self.head(batch["embeddings"])["logits"], batch["targets"]
            batch_loss = functional.cross_entropy(logits, targets, reduction="sum")
            for total, gradient in zip(gradients, torch.autograd.grad(batch_loss, parameters), strict=True):
                total += gradient
            rows += len(targets)
            hits += int((logits.argmax(dim=1) == targets).sum())
            loss += batch_loss.detach()
        penalty = rows * self.l2 / 2 * self.head.weight.square().sum()
        gradients[0] += torch.autograd.grad(penalty, self.head.weight)[0]
        return Evaluation(
            parameters=[parameter.detach().clone() for parameter in parameters],
            objective=loss + penalty.detach(),
            gradients=gradients,
            loss=float(loss) / rows,
            top1=hits / rows,
            slope=max(float(gradient.abs().max()) for gradient in gradients) / rows,
        )
