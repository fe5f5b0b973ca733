"""Dispatch: which hooks are called, in which order, with what, and that cleaning up never fails to happen."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from embedx.engine import loop
from embedx.engine.callback import HOOKS, Callback
from embedx.engine.dispatch import Dispatcher
from embedx.engine.state import TrainerState, new_state

STEP_HOOKS = [hook for hook in HOOKS if hook not in ("setup", "on_exception", "teardown")]


class Echo(nn.Module):
    """Returns what it is given."""

    def forward(self, images: Any) -> Any:
        return images


def _recording(hook: str) -> Callable[..., None]:
    def record(self: Any, *args: Any) -> None:
        self.calls.append((hook, *(arg for arg in args if isinstance(arg, int | BaseException))))

    return record


class RecorderBase(Callback):
    """What a recorder has besides its hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    @property
    def hooks(self) -> list[str]:
        return [hook for hook, *_ in self.calls]


Recorder = type("Recorder", (RecorderBase,), {hook: _recording(hook) for hook in HOOKS})


def raising(hook: str, error: BaseException) -> Callback:
    """A callback whose one hook raises `error`."""

    def fail(self: Any, *args: Any) -> None:
        raise error

    return type("Raising", (Callback,), {hook: fail})()


def returning(hook: str, metrics: Any) -> Callback:
    """A callback whose one hook returns `metrics`."""
    return type("Returning", (Callback,), {hook: lambda self, *args: metrics})()


def batches(count: int) -> list[dict[str, Any]]:
    return [{"images": torch.full((2, 1), number)} for number in range(count)]


def train(callbacks: Sequence[Callback], count: int = 2, epochs: int = 1, max_steps: int = -1) -> TrainerState:
    """Fires the train hooks in the contract's order."""
    state = new_state()
    hooks = Dispatcher(callbacks, state)
    model, loss = Echo(), nn.MSELoss()
    with hooks.running():
        for epoch in range(epochs):
            state["current_epoch"] = epoch
            hooks.fire("on_train_epoch_start", state, model, loss)
            for batch_idx, batch in enumerate(batches(count)):
                if state["global_step"] == max_steps:
                    break
                hooks.fire("on_train_batch_start", state, model, loss, batch, batch_idx)
                outputs = model(**batch)
                state["global_step"] += 1
                hooks.fire("on_train_batch_end", state, model, loss, outputs, batch, batch_idx, stage="train")
            hooks.fire("on_train_epoch_end", state, model, loss, stage="train")
            if state["global_step"] == max_steps:
                break
    return state


def test_a_test_run_over_two_dataloaders_calls_the_hooks_in_order() -> None:
    recorder = Recorder()
    loop.run_test(Echo(), {"train": batches(3), "val": batches(1)}, [recorder])
    assert recorder.calls == [
        ("setup",),
        ("on_test_epoch_start",),
        ("on_test_batch_end", 0, 0),
        ("on_test_batch_end", 1, 0),
        ("on_test_batch_end", 2, 0),
        ("on_test_batch_end", 0, 1),
        ("on_test_epoch_end",),
        ("teardown",),
    ]


def test_a_train_run_calls_the_hooks_in_order() -> None:
    recorder = Recorder()
    train([recorder], count=2, epochs=2)
    epoch = [
        ("on_train_epoch_start",),
        ("on_train_batch_start", 0),
        ("on_train_batch_end", 0),
        ("on_train_batch_start", 1),
        ("on_train_batch_end", 1),
        ("on_train_epoch_end",),
    ]
    assert recorder.calls == [("setup",), *epoch, *epoch, ("teardown",)]


def test_a_step_limit_ends_the_epoch_early_and_the_epoch_still_ends() -> None:
    recorder = Recorder()
    state = train([recorder], count=5, max_steps=1)
    assert recorder.hooks == [
        "setup",
        "on_train_epoch_start",
        "on_train_batch_start",
        "on_train_batch_end",
        "on_train_epoch_end",
        "teardown",
    ]
    assert state["global_step"] == 1


def test_callbacks_are_called_in_their_order_hook_by_hook() -> None:
    calls: list[tuple[Any, ...]] = []
    first, second = Recorder(), Recorder()
    first.calls = second.calls = calls
    train([first, second], count=1)
    assert calls[::2] == calls[1::2]
    assert [hook for hook, *_ in calls[::2]] == [
        "setup",
        "on_train_epoch_start",
        "on_train_batch_start",
        "on_train_batch_end",
        "on_train_epoch_end",
        "teardown",
    ]


def test_hooks_that_are_not_overridden_are_never_called(monkeypatch: pytest.MonkeyPatch) -> None:
    for hook in HOOKS:
        monkeypatch.setattr(Callback, hook, raising(hook, AssertionError(f"{hook} was called")).__getattribute__(hook))
    loop.run_test(Echo(), {"all": batches(2)}, [Callback(), Callback()])
    train([Callback()])


def test_only_overridden_hooks_are_resolved() -> None:
    one, nothing = returning("on_test_epoch_end", None), Callback()
    resolved = Dispatcher([nothing, one, nothing], new_state())._hooks
    assert {hook: calls for hook, calls in resolved.items() if calls} == {"on_test_epoch_end": [one.on_test_epoch_end]}
    assert tuple(resolved) == HOOKS


def test_an_inherited_override_takes_part() -> None:
    recorder = type("Heir", (Recorder,), {})()
    train([recorder], count=0)
    assert recorder.hooks == ["setup", "on_train_epoch_start", "on_train_epoch_end", "teardown"]


def test_a_hook_that_is_not_one_is_an_error() -> None:
    with pytest.raises(KeyError):
        Dispatcher([], new_state()).fire("on_tea_time")


def test_metrics_are_collected_by_stage() -> None:
    tensor = torch.tensor(0.5)
    state = train(
        [
            returning("on_train_batch_end", {"loss": tensor}),
            returning("on_train_epoch_end", {"accuracy": 0.75, "seen": 4}),
            returning("on_train_epoch_end", None),
            returning("on_test_epoch_end", {"never": 1}),
        ]
    )
    assert state["metrics"] == {"train/loss": tensor, "train/accuracy": 0.75, "train/seen": 4}
    state = loop.run_test(Echo(), {"all": batches(1)}, [returning("on_test_epoch_end", {"rows": 2})])
    assert state["metrics"] == {"test/rows": 2}


def test_a_later_value_of_a_metric_replaces_the_earlier() -> None:
    state = train([returning("on_train_epoch_end", {"x": 1}), returning("on_train_epoch_end", {"x": 2})])
    assert state["metrics"] == {"train/x": 2}


def test_what_hooks_other_than_the_metric_ones_return_is_no_metric() -> None:
    state = loop.run_test(Echo(), {"all": batches(1)}, [returning("on_test_batch_end", {"x": 1})])
    assert state["metrics"] == {}


def test_later_callbacks_of_the_same_hook_see_the_metrics() -> None:
    seen: dict[str, Any] = {}

    class Logger(Callback):
        def on_test_epoch_end(self, trainer_state: TrainerState, model: nn.Module) -> None:
            seen["test"] = dict(trainer_state["metrics"])

        def on_train_batch_end(self, trainer_state: TrainerState, *args: Any) -> None:
            seen["train"] = dict(trainer_state["metrics"])

    loop.run_test(Echo(), {"all": batches(1)}, [returning("on_test_epoch_end", {"rows": 2}), Logger()])
    train([returning("on_train_batch_end", {"loss": 1.0}), Logger()])
    assert seen == {"test": {"test/rows": 2}, "train": {"train/loss": 1.0}}


@pytest.mark.parametrize("hook", STEP_HOOKS)
@pytest.mark.parametrize("error", [ValueError("first"), KeyboardInterrupt("first")], ids=repr)
def test_an_error_in_a_hook_reaches_everyone_and_goes_on(hook: str, error: BaseException) -> None:
    before, after = Recorder(), Recorder()
    run = train if "train" in hook else lambda calls: loop.run_test(Echo(), {"all": batches(2)}, calls)
    with pytest.raises(type(error)) as caught:
        run([before, raising(hook, error), after])
    assert caught.value is error
    for recorder in (before, after):
        assert recorder.calls[-2:] == [("on_exception", error), ("teardown",)]
        assert recorder.hooks.count("teardown") == 1
    assert hook in before.hooks
    assert hook not in after.hooks


@pytest.mark.parametrize("error", [ValueError("first"), KeyboardInterrupt("first")], ids=repr)
def test_others_are_cleaned_up_though_one_fails_to_and_the_original_error_is_kept(error: BaseException) -> None:
    last = Recorder()
    callbacks = [
        raising("on_exception", RuntimeError("second")),
        raising("teardown", OSError("third")),
        raising("on_test_batch_end", error),
        last,
    ]
    with pytest.raises(type(error), match="first") as caught:
        loop.run_test(Echo(), {"all": batches(2)}, callbacks)
    assert caught.value is error
    assert last.hooks[-2:] == ["on_exception", "teardown"]
    assert caught.value.__notes__ == [
        "and in on_exception: RuntimeError('second')",
        "and in teardown: OSError('third')",
    ]


def test_on_exception_gets_the_state_as_it_stood() -> None:
    class Reporter(Callback):
        def on_exception(self, trainer_state: TrainerState, error: BaseException) -> None:
            self.report = (trainer_state["global_step"], str(error))

    def until_it_breaks() -> Any:
        yield from batches(2)
        raise OSError("no such image")

    reporter = Reporter()
    with pytest.raises(OSError, match="no such image"):
        loop.run_test(Echo(), {"all": until_it_breaks()}, [reporter])
    assert reporter.report == (2, "no such image")


def test_a_setup_that_raises_still_leads_to_teardown_and_nothing_runs() -> None:
    before, after = Recorder(), Recorder()
    error = ValueError("no disk")
    with pytest.raises(ValueError, match="no disk"):
        loop.run_test(Echo(), {"all": batches(1)}, [before, raising("setup", error), after])
    assert before.calls == [("setup",), ("on_exception", error), ("teardown",)]
    assert after.calls == [("on_exception", error), ("teardown",)]


def test_a_teardown_that_raises_after_a_good_run_fails_it_once_all_are_torn_down() -> None:
    recorder = Recorder()
    with pytest.raises(OSError, match="disk gone"):
        train([raising("teardown", OSError("disk gone")), recorder], count=0)
    assert recorder.hooks == ["setup", "on_train_epoch_start", "on_train_epoch_end", "teardown"]


def test_of_several_teardown_errors_none_is_lost() -> None:
    with pytest.raises(OSError, match="one") as caught:
        train([raising("teardown", OSError("one")), raising("teardown", OSError("two"))])
    assert "two" in repr(getattr(caught.value, "__notes__", ""))


@pytest.mark.parametrize("hook", ["on_exception", "teardown"])
def test_a_second_ctrl_c_does_not_stop_the_clean_up_of_the_others(hook: str) -> None:
    recorder = Recorder()
    callbacks = [raising(hook, KeyboardInterrupt("again")), raising("setup", ValueError("first")), recorder]
    with pytest.raises((ValueError, KeyboardInterrupt)):
        train(callbacks)
    assert recorder.hooks == ["on_exception", "teardown"]
