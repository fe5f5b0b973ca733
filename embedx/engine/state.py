"""The state of a run, which the loop shares with its callbacks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, NotRequired, TypedDict

from torch import Tensor

Batch = dict[str, Any]
"""A batch of a dataloader: `images` [B, 3, H, W] uint8, `index` [n] int64, `keys`, `groups`, `metadata`, ..."""
Outputs = dict[str, Any]
"""A model's outputs: `embeddings` [n, D] or [n, T, D], one entry per extra layer."""
Metrics = Mapping[str, float | int | Tensor]
"""The metrics that a hook may return; the loop collects them as `stage/name`."""


class Stopwatch:
    """Sums up seconds by the name of their purpose; it runs from the moment it is made."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        """Adds the time since the last lap to this name's seconds."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


class TrainerState(TypedDict):
    """The state of a run: one object for the whole run, kept up to date by the loop."""

    current_epoch: int
    epoch_step: int
    """The number of batches trained on in the current epoch; 0 again at the epoch's end."""
    num_epochs: int
    global_step: int
    """The number of batches so far, over all epochs and dataloaders; in a fit, of those trained on."""
    num_steps: int
    should_stop: bool
    """True ends a fit before its next batch; set by callbacks."""
    tested: bool
    """True while the weights are those of the last test of a fit."""
    train_dataloader: Iterable[Batch] | None
    num_train_batches: int | None
    test_dataloader: Mapping[str, Iterable[Batch]] | None
    """The test dataloaders by name, in order; a callback's `dataloader_idx` counts them from 0."""
    num_test_batches: list[int | None] | None
    """The number of batches of each test dataloader; None for one that can't tell."""
    seconds: dict[str, dict[str, float]]
    """The seconds of each test dataloader by purpose: `loader_wait`, `copy`, `forward`, `writer_wait`, `callbacks`."""
    stopwatch: Stopwatch
    """The stopwatch of the current test dataloader, for a callback that books its waiting under a name of its own."""
    optimizers: NotRequired[list[Any]]
    lr_schedulers: NotRequired[list[Any]]
    metrics: dict[str, float | int | Tensor]
    """The metrics returned by hooks so far, as `stage/name`; later callbacks of the same hook see them."""


def new_state() -> TrainerState:
    """Returns the state before anything has run."""
    return TrainerState(
        current_epoch=0,
        epoch_step=0,
        num_epochs=0,
        global_step=0,
        num_steps=0,
        should_stop=False,
        tested=False,
        train_dataloader=None,
        num_train_batches=None,
        test_dataloader=None,
        num_test_batches=None,
        seconds={},
        stopwatch=Stopwatch(),
        metrics={},
    )
