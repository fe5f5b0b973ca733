"""Saves the state of a fit: the last one, from which it can go on, and the best one."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from torch import nn

from embedx.callbacks.periodic import PeriodicCallback
from embedx.callbacks.state_file import read_state, write_state
from embedx.engine.state import TrainerState, new_state
from embedx.errors import CheckpointError, ConfigError, unknown
from embedx.store.format.atomic import make_folder

if TYPE_CHECKING:
    from torch.distributed.checkpoint.stateful import Stateful

_STATE = ("current_epoch", "epoch_step", "global_step", "should_stop", "tested", "metrics")
"""The keys of the trainer's state that are saved; a fit sets all others anew."""


class Checkpoint(PeriodicCallback):
    """Writes `last.safetensors` now and then, and `best.safetensors` whenever a metric reaches a new best.

    It belongs behind all callbacks that are among its parts, and behind those that end the fit.

    Args:
        folder: The folder of the checkpoints; it is made if necessary.
        parts: The objects to save, by name: the model, the optimizer, callbacks that have a `state_dict`.
        about: The facts about the fit, as plain JSON values; a checkpoint with other facts is not restored.
        monitor: The metric that tells the best state, such as `test/top1`; None saves no best.
        mode: The direction of better values, `min` or `max`.
        every: The number of epochs, or steps, from one write to the next; the fit's last state is always written.
        seconds: The least time between two writes, so that quick epochs do not wait for a disk.
        epoch_based: True counts `every` in epochs, False in steps.
    """

    def __init__(
        self,
        folder: str | Path,
        parts: Mapping[str, Stateful],
        about: Mapping[str, Any] | None = None,
        *,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "max",
        every: int = 1,
        seconds: float = 0.0,
        epoch_based: bool = True,
    ) -> None:
        super().__init__(epoch_based)
        self.folder = Path(folder)
        self.parts = dict(parts)
        self.about = dict(about or {})
        self.monitor = monitor
        self.every = every
        self.seconds = seconds
        self._sign = 1 if mode == "max" else -1
        self._best = -math.inf
        self._written = time.monotonic()

    def setup(self) -> None:
        """Makes the folder."""
        make_folder(self.folder.absolute())

    def act(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Writes the state, if that is due."""
        if self.done(trainer_state) % self.every == 0 and time.monotonic() - self._written >= self.seconds:
            self._write("last", trainer_state)

    def on_train_epoch_end(self, trainer_state: TrainerState, model: nn.Module, loss_module: nn.Module) -> None:
        """Writes the state after an epoch, if that is due or the fit has ended."""
        self._compare("train/", trainer_state)
        if (
            trainer_state["should_stop"]
            or trainer_state["current_epoch"] + 1 == trainer_state["num_epochs"]
            or (not trainer_state["num_epochs"] and trainer_state["global_step"] >= trainer_state["num_steps"])
        ):
            self._write("last", trainer_state)
        else:
            super().on_train_epoch_end(trainer_state, model, loss_module)

    def on_test_epoch_end(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Writes the state if it is the best, and as the last one if the test has ended the fit."""
        if trainer_state["train_dataloader"] is None:
            return
        self._compare("test/", trainer_state)
        if trainer_state["should_stop"]:
            self._write("last", trainer_state)

    def restore(self, name: Literal["last", "best"] = "last") -> TrainerState | None:
        """Restores all parts from a checkpoint.

        Args:
            name: The checkpoint's name, `last` or `best`.

        Returns:
            The trainer's state, for `run_fit` to go on from; None if there is no checkpoint.

        Raises:
            CheckpointError: If the checkpoint can't be read, is of another fit, or does not fit the parts.
        """
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            return None
        contents = read_state(path)
        if contents.get("about") != self.about or contents["parts"].keys() != self.parts.keys():
            raise CheckpointError(f"{path} is of another fit: {_differing(contents.get('about'), self.about)}")
        try:
            for part, state in contents["parts"].items():
                self.parts[part].load_state_dict(state)
            self._best = contents["best"]
            return cast(TrainerState, {**new_state(), **contents["state"]})
        except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            hint = "another version may have written it; remove it and begin anew"
            raise CheckpointError(f"{path} does not fit ({type(error).__name__}: {error}); {hint}") from error

    def _compare(self, stage: str, state: TrainerState) -> None:
        if self.monitor is None or not self.monitor.startswith(stage):
            return
        if self.monitor not in state["metrics"]:
            raise ConfigError(f"Checkpoint: {unknown('metric', self.monitor, state['metrics'])}")
        value = self._sign * float(state["metrics"][self.monitor])
        if value > self._best:
            self._best = value
            self._write("best", state)

    def _write(self, name: str, state: TrainerState) -> None:
        contents = {
            "about": self.about,
            "state": {key: state[key] for key in _STATE},  # type: ignore[literal-required]
            "best": self._best,
            "parts": {part: stateful.state_dict() for part, stateful in self.parts.items()},
        }
        write_state(self.folder / f"{name}.safetensors", contents)
        self._written = time.monotonic()


def _differing(then: Any, now: Mapping[str, Any]) -> str:
    then = then if isinstance(then, Mapping) else {}
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return "; ".join(f"{name} was {then.get(name)!r}, and is {now.get(name)!r}" for name in names) or "other parts"
