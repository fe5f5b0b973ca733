"""Where a fit stands, on disk: the last state, from which it can go on, and the best one.

A checkpoint is one file, so that it is replaced in one rename: tensors as safetensors, and all else as JSON in the
file's header, under the key `embedx`, as in a shard.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from embedx.engine.callback import Callback
from embedx.engine.state import Batch, Outputs, TrainerState, new_state
from embedx.errors import CheckpointError, ConfigError, unknown
from embedx.store.format.atomic import make_folder, write_atomic
from embedx.store.format.shards import HEADER_KEY

_STATE = ("current_epoch", "epoch_step", "global_step", "should_stop", "tested", "metrics")
"""What is kept of the trainer's state; all else a fit states anew."""


class Stateful(Protocol):
    """What can be kept and brought back: a model, an optimizer, a callback."""

    def state_dict(self) -> dict[str, Any]:
        """What there is to keep: tensors and plain values, in dicts and lists."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Brings that back."""
        ...


class Checkpoint(Callback):
    """Writes `last.safetensors` now and then, and `best.safetensors` whenever a metric is better than ever.

    It stands behind all callbacks that are among its parts, or that end the fit.

    Args:
        folder: Where to; made if it isn't there.
        parts: What is kept, by name: the model, the optimizer, callbacks that have a state.
        about: What a checkpoint has to be about to be gone on with; plain JSON values.
        monitor: The metric that tells the best, such as `test/top1`; None: no best.
        mode: Whether less is better, or more.
        every: Epochs, or steps, from one to the next; the fit's last state is always written.
        seconds: That have to pass as well, so that quick epochs do not wait for a disk.
        epoch_based: Whether to count by epochs, or by steps; an update by several batches must not be under way.
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

    def on_train_batch_end(
        self,
        trainer_state: TrainerState,
        model: nn.Module,
        loss_module: nn.Module,
        outputs: Outputs,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Writes the state after a step, if it is time for that."""
        if not self.epoch_based and self._is_due(trainer_state["global_step"]):
            self._write("last", trainer_state)

    def on_train_epoch_end(self, trainer_state: TrainerState, model: nn.Module, loss_module: nn.Module) -> None:
        """Writes the state after an epoch, if it is time for that, or nothing follows."""
        self._compare("train/", trainer_state)
        epochs = trainer_state["current_epoch"] + 1
        is_last = (
            trainer_state["should_stop"]
            or epochs == trainer_state["num_epochs"]
            or (not trainer_state["num_epochs"] and trainer_state["global_step"] >= trainer_state["num_steps"])
        )
        if is_last or (self.epoch_based and self._is_due(epochs)):
            self._write("last", trainer_state)

    def on_test_epoch_end(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Writes the best state of a fit, and the last one, if the test has ended it."""
        if trainer_state["train_dataloader"] is None:
            return
        self._compare("test/", trainer_state)
        if trainer_state["should_stop"]:
            self._write("last", trainer_state)

    def restore(self, name: Literal["last", "best"] = "last") -> TrainerState | None:
        """Brings all parts into the state of a checkpoint.

        Returns:
            The trainer's state, for `run_fit` to go on from; None if there is no checkpoint.

        Raises:
            CheckpointError: If it can't be read, or is about something else.
        """
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            return None
        contents = read_state(path)
        if contents.get("about") != self.about or contents["parts"].keys() != self.parts.keys():
            raise CheckpointError(f"{path} is of another fit: {_differing(contents.get('about'), self.about)}")
        for part, state in contents["parts"].items():
            self.parts[part].load_state_dict(state)
        self._best = contents["best"]
        return cast(TrainerState, {**new_state(), **contents["state"]})

    def _is_due(self, done: int) -> bool:
        return done % self.every == 0 and time.monotonic() - self._written >= self.seconds

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


def write_state(path: Path, contents: Mapping[str, Any]) -> None:
    """Writes nested dicts and lists of tensors and plain JSON values, whole or not at all.

    Raises:
        OSError: If it can't be written.
    """
    tensors: dict[str, Tensor] = {}
    header = json.dumps(_encode(contents, "", tensors))
    write_atomic(path, save(tensors, metadata={HEADER_KEY: header}))


def read_state(path: Path) -> dict[str, Any]:
    """Reads what `write_state` has written; tuples come back as lists.

    Raises:
        CheckpointError: If it can't be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (not a mapping)
            header = json.loads((file.metadata() or {})[HEADER_KEY])
        return cast(dict[str, Any], _decode(header, tensors))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({error}); remove it and begin anew") from error


def _encode(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """Plain JSON, in which tensors are named and dicts are lists of pairs, as their keys may be numbers."""
    if isinstance(value, Tensor):
        name = place.removeprefix("/")
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[key, _encode(item, f"{place}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_encode(item, f"{place}/{number}", tensors) for number, item in enumerate(value)]
    return value


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _decode(item, tensors) for key, item in value["dict"]}
    return value


def _differing(then: Any, now: Mapping[str, Any]) -> str:
    then = then if isinstance(then, Mapping) else {}
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return "; ".join(f"{name} was {then.get(name)!r}, and is {now.get(name)!r}" for name in names) or "other parts"
