"""What a loop tells its callbacks of where it stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NotRequired, TypedDict

from torch import Tensor

from embedx.engine.stopwatch import Stopwatch

Batch = dict[str, Any]
"""What a dataloader yields: `images` [B, 3, H, W] uint8, `index` [n] int64, `keys`, `groups`, `metadata`, ..."""
Outputs = dict[str, Any]
"""What a model returns: `embeddings` [n, D] or [n, T, D], one entry per extra layer."""
Metrics = Mapping[str, float | int | Tensor]
"""What a hook may return; the loop collects it under the stage's name."""


class TrainerState(TypedDict):
    """Where the run stands; one object for the whole run, kept up to date by the loop."""

    current_epoch: int
    epoch_step: int
    """Batches of the current epoch that have been trained on; 0 again once it has come to its end."""
    num_epochs: int
    global_step: int
    """Batches seen so far, over all epochs and dataloaders; in a fit those that were trained on."""
    num_steps: int
    should_stop: bool
    """Set by a callback, ends a fit before its next batch."""
    tested: bool
    """Whether the weights are still those that the last test of a fit was of."""
    train_dataloader: Iterable[Batch] | None
    num_train_batches: int | None
    test_dataloader: Mapping[str, Iterable[Batch]] | None
    """The test dataloaders by name, in order; a callback's `dataloader_idx` counts them from 0."""
    num_test_batches: list[int | None] | None
    """Batches of each test dataloader; None for one that can't tell."""
    seconds: dict[str, dict[str, float]]
    """Per test dataloader, where the time went: `loader_wait`, `copy`, `forward`, `writer_wait`, other `callbacks`."""
    stopwatch: Stopwatch
    """The stopwatch of the current test dataloader, for a callback that books its waiting under a name of its own."""
    optimizers: NotRequired[list[Any]]
    lr_schedulers: NotRequired[list[Any]]
    metrics: dict[str, float | int | Tensor]
    """Metrics returned by hooks so far, as `stage/name`; later callbacks of the same hook see them."""


def new_state() -> TrainerState:
    """The state before anything has run."""
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
