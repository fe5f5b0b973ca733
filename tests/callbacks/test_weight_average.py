"""The average of the weights: its numbers, when it is taken, and that it is there for tests alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from embedx.callbacks.weight_average import WeightAverage
from embedx.engine.callback import Callback
from embedx.engine.fit import Schedule
from embedx.engine.state import new_state
from tests.callbacks.fits import Classifier, batches, fit

pytestmark = pytest.mark.usefixtures("one_thread")


class Watcher(Callback):
    """Copies the weights after every step, every epoch, and as tests see them."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, Any]] = []
        self.epochs: list[dict[str, Any]] = []
        self.tested: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer_state: Any, model: Any, *args: Any) -> None:
        self.steps.append(copy.deepcopy(model.state_dict()))

    def on_train_epoch_end(self, trainer_state: Any, model: Any, *args: Any) -> None:
        self.epochs.append(copy.deepcopy(model.state_dict()))

    def on_test_batch_end(self, trainer_state: Any, model: Any, *args: Any) -> None:
        self.tested.append(copy.deepcopy(model.state_dict()))


def average_of(weights: list[dict[str, Any]], decay: float) -> torch.Tensor:
    mean = weights[0]["layer.weight"].double()
    for each in weights[1:]:
        mean = decay * mean + (1 - decay) * each["layer.weight"].double()
    return mean


@pytest.mark.parametrize("epoch_based", [False, True])
def test_tests_see_the_average_and_training_goes_on_with_the_weights(epoch_based: bool) -> None:
    watcher, average, model = Watcher(), WeightAverage(0.8, epoch_based=epoch_based), Classifier()
    fit(Schedule(2, test_every=1), watcher, average, model=model, tests={"val": batches(1)})
    taken = watcher.epochs if epoch_based else watcher.steps
    per_epoch = 1 if epoch_based else 3
    for epoch, seen in enumerate(watcher.tested, 1):
        expected = average_of(taken[: epoch * per_epoch], 0.8)
        torch.testing.assert_close(seen["layer.weight"].double(), expected, rtol=1e-6, atol=1e-7)
        assert seen["seen"] == taken[epoch * per_epoch - 1]["seen"]
    assert len(watcher.tested) == 2 and not torch.equal(watcher.tested[1]["layer.weight"], model.layer.weight)
    assert torch.equal(model.layer.weight, watcher.steps[-1]["layer.weight"])
    plain = Classifier()
    fit(Schedule(2), model=plain)
    assert torch.equal(plain.layer.weight, model.layer.weight)


def test_it_goes_on_from_where_it_stood() -> None:
    whole, first, second = WeightAverage(0.5), WeightAverage(0.5), WeightAverage(0.5)
    fit(Schedule(2), whole)
    model = Classifier()
    fit(Schedule(1), first, model=model)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    fit(Schedule(1), second, model=model)
    assert torch.equal(whole.weights["layer.weight"], second.weights["layer.weight"])


def test_a_test_before_the_first_step_sees_the_weights() -> None:
    average, model = WeightAverage(), Classifier()
    average.on_test_epoch_start(new_state(), model)
    average.on_test_epoch_end(new_state(), model)
    assert torch.equal(model.layer.weight, Classifier().layer.weight)
