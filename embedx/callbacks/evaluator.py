"""Evaluates a classifier.

Shapes: n rows of a batch, N rows in all, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedx.engine.callback import Callback
from embedx.engine.connectors import CallbackConnector, data_key, pred_key
from embedx.engine.state import Batch, Metrics, Outputs, TrainerState

LOGITS = CallbackConnector({"logits": pred_key("logits"), "targets": data_key("targets")})
"""The connector of the prediction's `logits` [n, C] and the batch's `targets` [n] int64."""


class Evaluator(Callback):
    """Compares logits with targets, over a training epoch and over one dataloader of a test.

    Returns `top1`; in a test also `top{k}` if there are more than k classes, `mean_class_accuracy` over the classes
    that have rows, `loss` (the mean cross-entropy) and, for two classes, `average_precision` of the second.

    Args:
        num_classes: The number of classes, C.
        k: The number of largest logits among which a target counts for `top{k}`.
        dataloader_idx: The index of the test dataloader to evaluate.
        train_connector: The places of `logits` and `targets` in training; None evaluates tests alone.
        test_connector: The places of `logits` and `targets` in a test.
    """

    def __init__(
        self,
        num_classes: int,
        k: int = 5,
        *,
        dataloader_idx: int = 0,
        train_connector: CallbackConnector | None = LOGITS,
        test_connector: CallbackConnector = LOGITS,
    ) -> None:
        super().__init__(train_connector=train_connector, test_connector=test_connector)
        self.num_classes = num_classes
        self.k = k
        self.dataloader_idx = dataloader_idx
        self.confusion = _sparse(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), num_classes)
        """The number of rows of the last test by target and predicted class, a sparse tensor [C, C] int64."""

    def on_train_epoch_start(self, trainer_state: TrainerState, model: nn.Module, loss_module: nn.Module) -> None:
        """Resets the counts."""
        self._train_rows, self._train_hits = 0, 0

    def on_train_batch_end(
        self,
        trainer_state: TrainerState,
        model: nn.Module,
        loss_module: nn.Module,
        outputs: Outputs,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Counts the batch's rows, and those whose target has the largest logit."""
        if self.train_connector is None:
            return
        inputs = self.get_train_callback_inputs(outputs, batch)
        self._train_rows += len(inputs["targets"])
        self._train_hits += int((inputs["logits"].argmax(dim=1) == inputs["targets"]).sum())

    def on_train_epoch_end(self, trainer_state: TrainerState, model: nn.Module, loss_module: nn.Module) -> Metrics:
        """Returns `top1` over the epoch; each batch was predicted by the weights of its step."""
        return {"top1": self._train_hits / self._train_rows} if self._train_rows else {}

    def on_test_epoch_start(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Resets the counts."""
        self._places: list[Tensor] = []
        self._loss, self._near_hits = 0.0, 0
        self._scores: list[Tensor] = []
        self._positives: list[Tensor] = []

    def on_test_batch_end(
        self,
        trainer_state: TrainerState,
        model: nn.Module,
        outputs: Outputs,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts the batch's rows by target and prediction."""
        if dataloader_idx != self.dataloader_idx:
            return
        inputs = self.get_test_callback_inputs(outputs, batch)
        logits, targets = inputs["logits"].cpu(), inputs["targets"].cpu()
        self._places.append(targets * self.num_classes + logits.argmax(dim=1))
        self._loss += float(functional.cross_entropy(logits.double(), targets, reduction="sum"))
        if self.k < self.num_classes:
            # Among equal logits the target's comes last: a row whose logits are all equal is no hit.
            as_large = ~(logits < logits.gather(1, targets[:, None]))
            self._near_hits += int((as_large.sum(dim=1) <= self.k).sum())
        if self.num_classes == 2:
            self._scores.append((logits[:, 1] - logits[:, 0]).clone())
            self._positives.append(targets == 1)

    def on_test_epoch_end(self, trainer_state: TrainerState, model: nn.Module) -> Metrics:
        """Returns the metrics, or none if there was no row."""
        if not self._places:
            return {}
        places, counts = torch.unique(torch.cat(self._places), return_counts=True)
        pairs = torch.stack((places // self.num_classes, places % self.num_classes))
        self.confusion = _sparse(pairs, counts, self.num_classes)
        rows, hits = counts.new_zeros(2, self.num_classes)
        rows.index_add_(0, pairs[0], counts)
        hits.index_add_(0, pairs[0], torch.where(pairs[0] == pairs[1], counts, 0))
        total, there = int(rows.sum()), rows > 0
        metrics = {
            "top1": int(hits.sum()) / total,
            "mean_class_accuracy": float((hits[there].double() / rows[there]).mean()),
            "loss": self._loss / total,
        }
        if self.k < self.num_classes:
            metrics[f"top{self.k}"] = self._near_hits / total
        if self.num_classes == 2:
            metrics["average_precision"] = average_precision(torch.cat(self._scores), torch.cat(self._positives))
        return metrics


def _sparse(pairs: Tensor, counts: Tensor, num_classes: int) -> Tensor:
    with torch.sparse.check_sparse_tensor_invariants(False):  # said, as some versions of torch warn of silence
        return torch.sparse_coo_tensor(pairs, counts, (num_classes, num_classes)).coalesce()


def average_precision(scores: Tensor, positives: Tensor) -> float:
    """Computes the mean of the precisions at each positive's score, rows of equal scores taken together.

    It is the step-wise area under the curve of precision over recall: the sum of (R_i - R_{i-1}) * P_i over the
    distinct scores, from the highest down, without interpolation, as scikit-learn defines it.

    Args:
        scores: The rows' scores [N] float.
        positives: A mask [N] bool of the rows that are positive.

    Returns:
        A number in [0, 1]; 0 without positives.
    """
    order = scores.argsort(descending=True)
    hits = positives[order].cumsum(0).double()
    last_of_score = torch.ones_like(positives)
    last_of_score[:-1] = scores[order].diff() != 0
    hits, places = hits[last_of_score], last_of_score.nonzero().flatten() + 1
    if not len(hits) or not hits[-1]:
        return 0.0
    return float((hits.diff(prepend=hits.new_zeros(1)) * hits / places).sum() / hits[-1])
