"""The fit loop: the order of its hooks, its limits, its tests, what it learns, and going on from where it stood."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import embedx
from embedx.engine.callback import HOOKS, Callback
from embedx.engine.connectors import DataConnector, LossConnector, data_key, pred_key
from embedx.engine.fit import Schedule, run_fit
from embedx.engine.state import Batch, TrainerState, new_state
from embedx.errors import ConfigError, ConnectorError

pytestmark = pytest.mark.usefixtures("one_thread")

LOSS = LossConnector({"input": pred_key("logits"), "target": data_key("labels.main")})
INPUTS = DataConnector({"rows": "features"})


class Model(nn.Module):
    """A linear layer under names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2, dtype=torch.float64)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        self.modes: list[bool] = []

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        self.modes.append(self.training)
        return {"logits": self.layer(rows)}


def batches(*sizes: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(sum(sizes))
    return [
        {
            "features": torch.randn(size, 3, dtype=torch.float64, generator=generator),
            "labels": {"main": torch.randint(0, 2, (size,), generator=generator)},
            "index": torch.arange(size),
        }
        for size in sizes
    ]


def _recording(hook: str) -> Callable[..., None]:
    def record(self: Any, *args: Any) -> None:
        self.calls.append((hook, *(arg for arg in args if isinstance(arg, int | BaseException))))

    return record


class RecorderBase(Callback):
    """What a recorder has besides its hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []


Recorder = type("Recorder", (RecorderBase,), {hook: _recording(hook) for hook in HOOKS})


class Ending(Callback):
    """Does something to the state after so many batches: ends the fit, or raises."""

    def __init__(self, step: int, error: BaseException | None = None) -> None:
        super().__init__()
        self.step, self.error = step, error

    def on_train_batch_end(self, trainer_state: TrainerState, *args: Any) -> None:
        if trainer_state["global_step"] == self.step:
            if self.error is not None:
                raise self.error
            trainer_state["should_stop"] = True


def fit(schedule: Schedule, *callbacks: Callback, model: Model | None = None, **options: Any) -> TrainerState:
    model = model or Model()
    optimizer = options.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=0.5)
    loader = options.pop("loader", None) or batches(4, 4)
    return run_fit(
        model, nn.CrossEntropyLoss(), optimizer, loader, callbacks, schedule, loss_connector=LOSS, connector=INPUTS,
        **options,
    )  # fmt: skip


def batch(number: int) -> list[tuple[Any, ...]]:
    return [("on_train_batch_start", number), ("on_train_batch_end", number)]


START, END = ("on_train_epoch_start",), ("on_train_epoch_end",)
TEST = [("on_test_epoch_start",), ("on_test_batch_end", 0, 0), ("on_test_epoch_end",)]


def test_the_public_name_is_this_loop() -> None:
    assert embedx.run_fit is run_fit


def test_epochs_run_in_the_contract_s_order_and_tests_follow_every_so_many_and_the_last() -> None:
    recorder = Recorder()
    state = fit(Schedule(3, test_every=2), recorder, test_dataloaders={"val": batches(2)})
    epoch = [START, *batch(0), *batch(1), END]
    assert recorder.calls == [("setup",), *epoch, *epoch, *TEST, *epoch, *TEST, ("teardown",)]
    assert (state["global_step"], state["current_epoch"], state["num_epochs"], state["num_steps"]) == (6, 2, 3, 6)
    assert (state["num_train_batches"], state["num_test_batches"]) == (2, [1])


def test_a_last_epoch_that_was_tested_is_not_tested_again() -> None:
    recorder = Recorder()
    fit(Schedule(2, test_every=1), recorder, test_dataloaders={"val": batches(2)})
    epoch = [START, *batch(0), *batch(1), END]
    assert recorder.calls == [("setup",), *epoch, *TEST, *epoch, *TEST, ("teardown",)]


def test_a_step_limit_ends_the_epoch_early_and_the_epoch_still_ends() -> None:
    recorder = Recorder()
    schedule = Schedule(3, epoch_based=False, test_every=2)
    state = fit(schedule, recorder, test_dataloaders={"val": batches(2)})
    assert recorder.calls == [
        ("setup",), START, *batch(0), *batch(1), *TEST, END, START, *batch(0), END, *TEST, ("teardown",)
    ]  # fmt: skip
    assert (state["global_step"], state["current_epoch"], state["epoch_step"]) == (3, 1, 1)


def test_a_limit_at_an_epoch_s_end_begins_no_other() -> None:
    recorder = Recorder()
    state = fit(Schedule(2, epoch_based=False), recorder)
    assert recorder.calls == [("setup",), START, *batch(0), *batch(1), END, ("teardown",)]
    assert state["epoch_step"] == 0


def test_a_callback_that_says_stop_ends_the_fit_before_the_next_batch() -> None:
    recorder = Recorder()
    fit(Schedule(9), Ending(3), recorder)
    first = [START, *batch(0), *batch(1), END]
    assert recorder.calls == [("setup",), *first, START, *batch(0), END, ("teardown",)]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=repr)
def test_an_error_is_told_and_everything_torn_down(error: BaseException) -> None:
    recorder = Recorder()
    with pytest.raises(type(error)):
        fit(Schedule(9), recorder, Ending(3, error))
    first = [START, *batch(0), *batch(1), END]
    assert recorder.calls == [("setup",), *first, START, *batch(0), ("on_exception", error), ("teardown",)]


def kept(state: TrainerState) -> dict[str, object]:
    """What a checkpoint keeps of a state."""
    names = ("current_epoch", "epoch_step", "global_step", "should_stop", "tested", "metrics")
    return {name: value for name, value in state.items() if name in names}


class Saver(Callback):
    """Keeps copies of the state, the model and the optimizer: what a checkpoint does, without a disk."""

    def __init__(self, model: Model, optimizer: torch.optim.Optimizer, after: int, epoch_based: bool) -> None:
        super().__init__(epoch_based)
        self.parts, self.after = (model, optimizer), after

    def on_train_batch_end(self, trainer_state: TrainerState, *args: Any) -> None:
        if not self.epoch_based and trainer_state["global_step"] == self.after:
            self._save(trainer_state)

    def on_train_epoch_end(self, trainer_state: TrainerState, *args: Any) -> None:
        if self.epoch_based and trainer_state["current_epoch"] + 1 == self.after:
            self._save(trainer_state)

    def _save(self, state: TrainerState) -> None:
        self.saved = copy.deepcopy(kept(state))
        self.states = copy.deepcopy([part.state_dict() for part in self.parts])


@pytest.mark.parametrize(
    ("schedule", "after", "rest"),
    [
        # After the epoch, before its test: that comes first.
        (Schedule(3, test_every=1), 2, [*TEST, START, *batch(0), *batch(1), END, *TEST]),
        (Schedule(5, epoch_based=False), 3, [START, *batch(1), END, START, *batch(0), END]),
        # After the last batch, before the epoch's end.
        (Schedule(3, epoch_based=False), 2, [START, END, START, *batch(0), END]),
        (Schedule(6, epoch_based=False, test_every=3), 3, [*TEST, START, *batch(1), END, START, *batch(0), *batch(1),
                                                           *TEST, END]),
        (Schedule(2), 2, []),
    ],
    ids=["epochs", "within an epoch", "behind its last batch", "before a test", "finished"],
)  # fmt: skip
def test_going_on_does_what_is_left_and_ends_with_the_same_weights(
    schedule: Schedule, after: int, rest: list[tuple[Any, ...]]
) -> None:
    tests = {"val": batches(2)} if schedule.test_every else {}
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    saver = Saver(model, optimizer, after, schedule.epoch_based)
    whole = fit(schedule, saver, model=model, optimizer=optimizer, test_dataloaders=tests)
    expected = copy.deepcopy(model.state_dict())

    again = Model()
    other = torch.optim.Adam(again.parameters(), lr=0.1)
    again.load_state_dict(saver.states[0])
    other.load_state_dict(saver.states[1])
    recorder = Recorder()
    state: Any = {**new_state(), **saver.saved}
    end = fit(schedule, recorder, model=again, optimizer=other, state=state, test_dataloaders=tests)
    assert recorder.calls == [("setup",), *rest, ("teardown",)]
    assert kept(end) == kept(whole)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_it_learns_as_the_usual_loop_does() -> None:
    model, loader = Model(), batches(4, 8, 4)
    fit(Schedule(3), model=model, loader=loader)
    other = Model()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.5)
    for _ in range(3):
        for each in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(other(each["features"])["logits"], each["labels"]["main"]).backward()
            optimizer.step()
    assert torch.equal(model.layer.weight, other.layer.weight) and model.layer.weight.abs().sum() > 0


def test_an_optimizer_may_evaluate_a_batch_several_times_a_step() -> None:
    model, other, (batch,) = Model(), Model(), batches(40)
    options: dict[str, Any] = {"max_iter": 5, "line_search_fn": "strong_wolfe"}
    state = fit(Schedule(2), model=model, loader=[batch], optimizer=torch.optim.LBFGS(model.parameters(), **options))
    optimizer = torch.optim.LBFGS(other.parameters(), **options)
    evaluated = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(other(batch["features"])["logits"], batch["labels"]["main"])
        loss.backward()
        evaluated.append(loss.item())
        return loss

    optimizer.step(closure)
    before = len(evaluated)
    optimizer.step(closure)
    assert torch.equal(model.layer.weight, other.layer.weight) and before > 2
    assert state["metrics"]["train/loss"] == evaluated[before], "the loss before the step"
    assert state["global_step"] == 2


def test_the_loss_is_a_metric_and_what_hooks_return_is_prefixed_by_stage() -> None:
    seen: list[float] = []

    class Metrics(Callback):
        def on_train_batch_end(self, trainer_state: TrainerState, *args: Any) -> dict[str, float]:
            seen.append(float(trainer_state["metrics"]["train/loss"]))
            return {"batch": 1}

        def on_train_epoch_end(self, *args: Any) -> dict[str, float]:
            return {"epoch": 2}

        def on_test_epoch_end(self, *args: Any) -> dict[str, float]:
            return {"top1": 3}

    state = fit(Schedule(1), Metrics(), test_dataloaders={"val": batches(2)})
    assert seen[0] == pytest.approx(0.693147, abs=1e-6) and seen[1] != seen[0]
    values = {name: value for name, value in state["metrics"].items() if name != "train/loss"}
    assert values == {"train/batch": 1, "train/epoch": 2, "test/top1": 3}


def test_the_model_trains_in_training_mode_and_is_tested_in_evaluation_mode() -> None:
    model = Model()
    fit(Schedule(2, test_every=1), model=model, loader=batches(4), test_dataloaders={"val": batches(2)})
    assert model.modes == [True, False, True, False]


def test_tests_do_not_count_as_steps() -> None:
    schedule = Schedule(4, epoch_based=False, test_every=1)
    assert fit(schedule, test_dataloaders={"val": batches(2, 2, 2)})["global_step"] == 4


def test_padding_is_not_learned_from() -> None:
    full = batches(4)[0]
    cut = {**full, "index": full["index"][:3], "labels": {"main": full["labels"]["main"][:3]}}
    short = {**cut, "features": full["features"][:3]}
    padded, whole = Model(), Model()
    fit(Schedule(1), model=padded, loader=[cut])
    fit(Schedule(1), model=whole, loader=[short])
    torch.testing.assert_close(padded.layer.weight, whole.layer.weight)


def test_a_dataloader_without_a_length_is_one_too() -> None:
    class Stream:
        def __iter__(self) -> Iterator[Batch]:
            yield from batches(4, 4)

    state = fit(Schedule(2), loader=Stream())
    assert (state["global_step"], state["num_train_batches"], state["num_steps"]) == (4, None, 0)


def test_no_batches_and_missing_keys_are_clear_errors() -> None:
    class Empty:
        def __iter__(self) -> Iterator[Batch]:
            return iter(())

    with pytest.raises(ConfigError, match="the train dataloader has no batches"):
        fit(Schedule(5, epoch_based=False), loader=Empty())
    with pytest.raises(ConnectorError, match="the batch has no key 'features'; it has pixels"):
        fit(Schedule(1), loader=[{"pixels": 1}])
    unlabelled = [{"features": torch.zeros(2, 3, dtype=torch.float64)}]
    with pytest.raises(ConnectorError, match=r"the batch has no key 'labels\.main'; it has features"):
        fit(Schedule(1), loader=unlabelled)
