"""The evaluator: its metrics against scikit-learn's, and which rows they are of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor, nn

from embedx.callbacks.evaluator import Evaluator, average_precision
from embedx.engine.connectors import CallbackConnector, data_key, pred_key
from embedx.engine.fit import Schedule
from embedx.engine.loop import run_test
from tests.callbacks.fits import Classifier, fit
from tests.callbacks.fits import batches as train_batches

pytestmark = pytest.mark.usefixtures("one_thread")


class Given(nn.Module):
    """Returns the logits that the batch brings."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": images}


def made_up(rows: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator).mul(4).round() / 4 + 1e-3 * torch.arange(classes)
    return logits, torch.randint(0, classes, (rows,), generator=generator)


def run(evaluator: Evaluator, logits: Tensor, targets: Tensor, size: int = 16) -> dict[str, Any]:
    pieces = zip(logits.split(size), targets.split(size), strict=True)
    loader = [{"images": rows, "targets": of_rows, "index": torch.arange(len(rows))} for rows, of_rows in pieces]
    state = run_test(Given(), {"val": loader}, [evaluator])
    return {name.removeprefix("test/"): value for name, value in state["metrics"].items()}


def test_the_metrics_are_scikit_learn_s() -> None:
    logits, targets = made_up(200, 7)
    targets[targets == 3] = 4  # a class without rows
    evaluator = Evaluator(7, k=3)
    found = run(evaluator, logits, targets)
    predicted, shares = logits.argmax(1), logits.double().softmax(1)
    recall = sk.recall_score(targets, predicted, average="macro", labels=[0, 1, 2, 4, 5, 6])
    assert found == {
        "top1": pytest.approx(sk.accuracy_score(targets, predicted)),
        "top3": pytest.approx(sk.top_k_accuracy_score(targets, logits, k=3, labels=range(7))),
        "mean_class_accuracy": pytest.approx(recall),
        "loss": pytest.approx(sk.log_loss(targets, shares, labels=range(7))),
    }
    assert np.array_equal(evaluator.confusion.to_dense(), sk.confusion_matrix(targets, predicted, labels=range(7)))


@pytest.mark.filterwarnings("ignore:No positive class found")
@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_scikit_learn_s_ties_and_all(seed: int) -> None:
    logits, targets = made_up(60, 2, seed)
    found = run(Evaluator(2), logits, targets)
    scores = logits[:, 1] - logits[:, 0]
    assert len(scores.unique()) < 60
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(targets, scores))
    assert "top5" not in found
    assert average_precision(scores, torch.zeros(60, dtype=torch.bool)) == 0
    assert average_precision(scores, torch.ones(60, dtype=torch.bool)) == 1


def test_a_class_that_nothing_speaks_for_is_no_guess() -> None:
    logits = torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    assert run(Evaluator(4, k=2), logits, torch.tensor([0, 1, 1]))["top2"] == pytest.approx(2 / 3)


def test_each_test_is_counted_anew_and_of_one_dataloader_only() -> None:
    targets = made_up(32, 3)[1]
    evaluator = Evaluator(3, dataloader_idx=1)
    right = {"images": nn.functional.one_hot(targets, 3).float(), "targets": targets, "index": torch.arange(32)}
    wrong = {**right, "targets": (targets + 1) % 3}
    for _ in range(2):
        state = run_test(Given(), {"wrong": [wrong], "right": [right]}, [evaluator])
        assert state["metrics"]["test/top1"] == 1 and evaluator.confusion.sum() == 32
    assert run_test(Given(), {"wrong": [wrong], "none": []}, [evaluator])["metrics"] == {}


def test_training_is_counted_epoch_by_epoch_through_the_connector() -> None:
    state = fit(Schedule(1), Evaluator(3))
    model, hits = Classifier(), 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in train_batches(3):
        logits = model(batch["images"])["logits"]
        hits += int((logits.argmax(1) == batch["targets"]).sum())
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, batch["targets"]).backward()
        optimizer.step()
    assert state["metrics"]["train/top1"] == hits / 24


def test_connectors_say_where_logits_and_targets_stand() -> None:
    class Nested(nn.Module):
        def forward(self, images: Tensor) -> dict[str, dict[str, Tensor]]:
            return {"heads": {"species": images}}

    connector = CallbackConnector({"logits": pred_key("heads.species"), "targets": data_key("labels.species")})
    batch = {"images": torch.eye(3), "labels": {"species": torch.tensor([0, 1, 0])}}
    state = run_test(Nested(), {"val": [batch]}, [Evaluator(3, test_connector=connector)])
    assert state["metrics"]["test/top1"] == pytest.approx(2 / 3)
