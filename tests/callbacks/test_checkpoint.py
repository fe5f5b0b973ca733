"""Checkpoints: what is in them, when they are written, that they are whole, and that a fit goes on to the same end."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from embedx.callbacks.checkpoint import Checkpoint
from embedx.callbacks.early_stopping import EarlyStopping
from embedx.callbacks.state_file import read_state, write_state
from embedx.callbacks.weight_average import WeightAverage
from embedx.engine.callback import Callback
from embedx.engine.fit import Schedule
from embedx.engine.loop import run_test
from embedx.engine.state import TrainerState
from embedx.errors import CheckpointError, ConfigError
from tests.callbacks.fits import Classifier, Given, batches, fit

pytestmark = pytest.mark.usefixtures("one_thread")

TESTS = {"val": batches(1)}


class Kill(Callback):
    """Ends the fit as a signal would, after so many steps, or at a test's beginning."""

    def __init__(self, step: int = -1, test: int = -1) -> None:
        super().__init__()
        self.step, self.test = step, test

    def on_train_batch_end(self, trainer_state: TrainerState, *args: Any) -> None:
        if trainer_state["global_step"] == self.step:
            raise KeyboardInterrupt

    def on_test_epoch_start(self, trainer_state: TrainerState, *args: Any) -> None:
        self.test -= 1
        if self.test == 0:
            raise KeyboardInterrupt


class Loss(Callback):
    """Returns a test's loss."""

    def on_test_batch_end(self, trainer_state: Any, model: Any, outputs: Any, batch: Any, *args: Any) -> None:
        self.loss = nn.functional.cross_entropy(outputs["logits"], batch["targets"])

    def on_test_epoch_end(self, *args: Any) -> dict[str, Any]:
        return {"loss": self.loss}


class Run:
    """A fit with all that has a state: a model with a buffer, Adam, an average, early stopping."""

    def __init__(self, folder: Path, schedule: Schedule, **options: Any) -> None:
        self.model, self.schedule = Classifier(), schedule
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.05)
        self.average = WeightAverage(0.9)
        self.stop = EarlyStopping("test/loss", patience=2, min_delta=0.02)
        parts: dict[str, Any] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "average": self.average,
            "stop": self.stop,
        }
        self.checkpoint = Checkpoint(folder, parts, {"data": 1}, monitor="test/loss", mode="min", **options)

    def __call__(self, *others: Callback, state: TrainerState | None = None) -> TrainerState:
        callbacks = [Loss(), self.average, self.stop, self.checkpoint, *others]
        return fit(
            self.schedule, *callbacks, model=self.model, optimizer=self.optimizer, tests=TESTS, state=state
        )  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "options", "kill"),
    [
        (Schedule(30, test_every=1), {}, Kill(step=8)),
        (Schedule(30, test_every=1), {}, Kill(test=3)),
        (Schedule(30, test_every=1), {"every": 2}, Kill(step=11)),
        (Schedule(8, test_every=3), {}, Kill(step=1)),
        (Schedule(11, epoch_based=False, test_every=4), {"epoch_based": False}, Kill(step=7)),
        (Schedule(11, epoch_based=False, test_every=4), {"epoch_based": False}, Kill(step=6)),
    ],
    ids=["in an epoch", "before a test", "every other", "before the first", "in an epoch, by steps", "at its end"],
)
def test_a_fit_that_was_interrupted_goes_on_to_the_same_bits(
    tmp_path: Path, schedule: Schedule, options: dict[str, Any], kill: Kill
) -> None:
    whole = Run(tmp_path / "whole", schedule, **options)
    end = whole()
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path / "cut", schedule, **options)(kill)
    again = Run(tmp_path / "cut", schedule, **options)
    state = again.checkpoint.restore()
    assert (state is None) == (kill.step == 1)
    assert again(state=state)["global_step"] == end["global_step"]
    for name in ("last", "best"):
        one, other = ((tmp_path / folder / f"{name}.safetensors").read_bytes() for folder in ("whole", "cut"))
        assert one == other, name
    if schedule.limit == 30:
        assert end["should_stop"] and 4 < end["current_epoch"] < 29


def test_the_best_is_kept_when_the_last_gets_worse(tmp_path: Path) -> None:
    model = Classifier()
    weights: list[torch.Tensor] = []

    class Watch(Callback):
        def on_test_epoch_end(self, trainer_state: Any, model: Any) -> None:
            weights.append(model.layer.weight.detach().clone())

    checkpoint = Checkpoint(tmp_path / "new" / "folder", {"model": model}, monitor="test/top1")
    given = Given("test/top1", [0.1, 0.5, 0.3, 0.5])
    fit(Schedule(4, test_every=1), given, Watch(), checkpoint, model=model, tests=TESTS)
    state = checkpoint.restore("best")
    assert state is not None and state["current_epoch"] == 1 and state["metrics"]["test/top1"] == 0.5
    assert torch.equal(model.layer.weight, weights[1])
    checkpoint.restore("last")
    assert torch.equal(model.layer.weight, weights[3])


def test_the_best_stays_the_best_when_the_fit_goes_on(tmp_path: Path) -> None:
    model = Classifier()
    for limit, values in ((2, [0.5, 0.4]), (4, [0.4, 0.3, 0.45])):
        checkpoint = Checkpoint(tmp_path, {"model": model}, monitor="test/top1")
        state = checkpoint.restore()
        fit(
            Schedule(limit, test_every=1), Given("test/top1", values), checkpoint, model=model, tests=TESTS, state=state
        )
    state = checkpoint.restore("best")
    assert state is not None and state["current_epoch"] == 0


@pytest.mark.parametrize("monitor", ["train/x", "test/x"])
def test_where_a_callback_has_ended_the_fit_the_last_state_is_written_too(tmp_path: Path, monitor: str) -> None:
    model, stop = Classifier(), EarlyStopping(monitor, threshold=1)
    checkpoint = Checkpoint(tmp_path, {"model": model}, every=50)
    tests = TESTS if monitor == "test/x" else None
    fit(Schedule(9, test_every=1), Given(monitor, [3, 2, 1]), stop, checkpoint, model=model, tests=tests)
    state = checkpoint.restore()
    assert state is not None and (state["current_epoch"], state["should_stop"]) == (2, True)


def test_any_safetensors_reader_has_the_weights(tmp_path: Path) -> None:
    model = Classifier()
    fit(Schedule(1), Checkpoint(tmp_path, {"head": model}), model=model)
    tensors = load_file(tmp_path / "last.safetensors")
    assert torch.equal(tensors["parts/head/layer.weight"], model.layer.weight)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.safetensors"]


@pytest.mark.parametrize(
    ("schedule", "options", "expected"),
    [
        (Schedule(5), {"every": 2}, [6, 12, 15]),
        (Schedule(7, epoch_based=False), {"every": 3, "epoch_based": False}, [3, 6, 7]),
        (Schedule(7, epoch_based=False), {"every": 2}, [6, 7]),
        (Schedule(5), {"seconds": 100.0}, [15]),
    ],
)
def test_it_is_written_every_so_many_and_at_the_end(
    tmp_path: Path, schedule: Schedule, options: dict[str, Any], expected: list[int]
) -> None:
    written = []
    model = Classifier()
    checkpoint = Checkpoint(tmp_path, {"model": model}, **options)

    class Watch(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            self._look()

        def teardown(self) -> None:
            self._look()

        def _look(self) -> None:
            if (tmp_path / "last.safetensors").exists():
                written.append(read_state(tmp_path / "last.safetensors")["state"]["global_step"])

    fit(schedule, checkpoint, Watch(), model=model)
    assert list(dict.fromkeys(written)) == expected


def test_a_full_disk_leaves_the_last_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Classifier()
    checkpoint = Checkpoint(tmp_path, {"model": model})
    fit(Schedule(1), checkpoint, model=model)
    before = (tmp_path / "last.safetensors").read_bytes()

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("embedx.store.format.atomic.os.fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        fit(Schedule(1), checkpoint, model=model)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


@pytest.mark.parametrize("damage", [b"", b"not safetensors", None])
def test_a_damaged_one_is_a_clear_error(tmp_path: Path, damage: bytes | None) -> None:
    checkpoint = Checkpoint(tmp_path, {})
    write_state(tmp_path / "last.safetensors", {"parts": {}})
    if damage is not None:
        (tmp_path / "last.safetensors").write_bytes(damage)
    else:
        whole = (tmp_path / "last.safetensors").read_bytes()
        (tmp_path / "last.safetensors").write_bytes(whole[:-5])
    with pytest.raises(CheckpointError, match=r"last\.safetensors: not a readable checkpoint"):
        checkpoint.restore()


def test_one_of_something_else_is_refused_with_what_differs(tmp_path: Path) -> None:
    model = Classifier()
    fit(Schedule(1), Checkpoint(tmp_path, {"model": model}, {"l2": 0.1, "seed": 0}), model=model)
    with pytest.raises(CheckpointError, match=r"is of another fit: l2 was 0\.1, and is 0\.2") as caught:
        Checkpoint(tmp_path, {"model": model}, {"l2": 0.2, "seed": 0}).restore()
    assert caught.value.exit_code == 2
    with pytest.raises(CheckpointError, match="other parts"):
        Checkpoint(tmp_path, {"head": model}, {"l2": 0.1, "seed": 0}).restore()


@pytest.mark.parametrize("part", [{"length": 1.0}, {"state": {}, "param_groups": []}, None])
def test_an_optimizers_state_that_does_not_fit_is_refused(tmp_path: Path, part: dict[str, Any] | None) -> None:
    model = Classifier()
    parts = {"optimizer": torch.optim.LBFGS(model.parameters())}
    last = tmp_path / "last.safetensors"
    write_state(last, {"about": {}, "parts": {"optimizer": part}, "best": 0.0, "state": {}})
    with pytest.raises(CheckpointError, match=r"last\.safetensors does not fit \(.*; remove it and begin anew"):
        Checkpoint(tmp_path, parts).restore()


def test_without_one_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path / "none", {}).restore() is None


def test_a_metric_that_nobody_returns_is_a_clear_error(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, {}, monitor="test/top2")
    with pytest.raises(ConfigError, match="Checkpoint: unknown metric 'test/top2'; did you mean test/top1"):
        fit(Schedule(1), Given("test/top1", [1]), checkpoint, tests=TESTS)


def test_a_test_alone_writes_none(tmp_path: Path) -> None:
    run_test(Classifier(), TESTS, [Checkpoint(tmp_path, {})])
    assert list(tmp_path.iterdir()) == []
