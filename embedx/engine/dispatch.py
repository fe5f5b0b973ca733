"""Dispatch of hooks to the callbacks that override them, resolved once, before the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from embedx.engine.callback import HOOKS, Callback
from embedx.engine.state import TrainerState

Stage = Literal["train", "test"]


class Dispatcher:
    """Calls the hooks of callbacks, in the callbacks' order; a hook that is not overridden is never called.

    Args:
        callbacks: The callbacks, in the order in which they are called.
        state: The run's state, whose `metrics` collect those that hooks return.
    """

    def __init__(self, callbacks: Sequence[Callback], state: TrainerState) -> None:
        self.state = state
        self._hooks: dict[str, list[Callable[..., Any]]] = {
            hook: [
                getattr(callback, hook)
                for callback in callbacks
                if getattr(type(callback), hook) is not getattr(Callback, hook)
            ]
            for hook in HOOKS
        }

    def fire(self, hook: str, *args: Any, stage: Stage | None = None) -> None:
        """Calls one hook of every callback that overrides it; the metrics they return are collected as `stage/name`."""
        for call in self._hooks[hook]:
            metrics = call(*args)
            if metrics and stage:
                self.state["metrics"].update({f"{stage}/{name}": value for name, value in metrics.items()})

    @contextmanager
    def running(self) -> Iterator[None]:
        """Frames a run: `setup` before it, `on_exception` after an error, `teardown` always.

        `on_exception` and `teardown` are called on every callback, even if another callback's raises.
        """
        try:
            self.fire("setup")
            yield
        except BaseException as error:
            self._clean_up(error, "on_exception", self.state, error)
            self._clean_up(error, "teardown")
            raise
        if trouble := self._clean_up(None, "teardown"):
            raise trouble

    def _clean_up(self, first: BaseException | None, hook: str, *args: Any) -> BaseException | None:
        """Calls a hook of every callback; returns the first error, which has the others as notes."""
        for call in self._hooks[hook]:
            try:
                call(*args)
            except BaseException as trouble:  # noqa: BLE001  (every callback gets its turn to clean up)
                if first is None:
                    first = trouble
                else:
                    first.add_note(f"and in {hook}: {trouble!r}")
        return first
