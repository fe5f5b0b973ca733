"""The test loop. It knows neither disk nor queue nor terminal: callbacks do all that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from embedx.callbacks.base import Callback
from embedx.engine.connectors import DataConnector
from embedx.engine.dispatch import Dispatcher
from embedx.engine.state import Batch, TrainerState, new_state
from embedx.engine.stopwatch import Stopwatch

IMAGES = DataConnector({"images": "images"})
"""Feeds the batch's images to a model that takes `images`."""


def run_test(
    model: nn.Module,
    dataloaders: Mapping[str, Iterable[Batch]],
    callbacks: Sequence[Callback],
    connector: DataConnector = IMAGES,
) -> TrainerState:
    """Runs a model over named dataloaders, in evaluation and inference mode.

        setup
        on_test_epoch_start
        for each dataloader, for each batch:
            outputs = model(**connector(batch)), without the batch's padding
            on_test_batch_end
        on_test_epoch_end
        on_exception, if anything was raised
        teardown, always

    Args:
        model: Called with keyword arguments; returns [B, ...] tensors, one or a dict of them.
        dataloaders: By name, in order; each yields batches.
        callbacks: Called in this order.
        connector: Which of the batch's values the model gets.

    Returns:
        The state at the end, with the metrics that hooks returned as `test/name`.
    """
    state = new_state()
    state["test_dataloader"] = dataloaders
    lengths = [_length(loader) for loader in dataloaders.values()]
    state["num_test_batches"] = lengths
    state["num_steps"] = sum(length or 0 for length in lengths)
    state["num_epochs"] = 1
    hooks = Dispatcher(callbacks, state)
    with hooks.running(), evaluation_mode(model):
        run_test_epoch(model, dataloaders, hooks, connector)
    return state


def run_test_epoch(
    model: nn.Module,
    dataloaders: Mapping[str, Iterable[Batch]],
    hooks: Dispatcher,
    connector: DataConnector,
) -> None:
    """One pass over the dataloaders, from on_test_epoch_start to on_test_epoch_end."""
    state = hooks.state
    hooks.fire("on_test_epoch_start", state, model)
    for dataloader_idx, (name, loader) in enumerate(dataloaders.items()):
        watch = Stopwatch()
        state["seconds"][name] = watch.seconds
        for batch_idx, batch in enumerate(loader):
            watch.lap("loader_wait")
            with torch.inference_mode():
                outputs = unpad(model(**connector(batch)), batch)
            watch.lap("forward")
            state["global_step"] += 1
            hooks.fire("on_test_batch_end", state, model, outputs, batch, batch_idx, dataloader_idx)
            watch.lap("callbacks")
        watch.lap("loader_wait")
    hooks.fire("on_test_epoch_end", state, model, stage="test")


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Brings a model into evaluation mode, and afterwards each of its modules back into the mode it was in."""
    # Frozen TorchScript has no modes.
    modes = {module: module.training for module in model.modules() if hasattr(module, "training")}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def unpad(outputs: Any, batch: Batch) -> Any:
    """Drops the outputs for a batch's padding: the rows beyond its `index` [n].

    Args:
        outputs: A [B, ...] tensor, or a dict of them.
        batch: The batch they come from; left as they are if it has no `index`.

    Returns:
        [n, ...] views.
    """
    if "index" not in batch:
        return outputs
    if isinstance(outputs, Tensor):
        return outputs[: len(batch["index"])]
    return {name: unpad(value, batch) for name, value in outputs.items()}


def _length(loader: Iterable[Batch]) -> int | None:
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:  # also a DataLoader's, over a dataset without a length
        return None
