"""The test loop. It knows neither disk nor queue nor terminal: callbacks do all that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from embedx.engine.callback import Callback
from embedx.engine.connectors import DataConnector
from embedx.engine.dispatch import Dispatcher
from embedx.engine.state import Batch, Stopwatch, TrainerState, new_state

IMAGES = DataConnector({"images": "images"})
"""The connector of a model that takes the batch's images as `images`."""


def run_test(
    model: nn.Module,
    dataloaders: Mapping[str, Iterable[Batch]],
    callbacks: Sequence[Callback],
    connector: DataConnector = IMAGES,
    place: Callable[[Batch], Batch] = lambda batch: batch,
) -> TrainerState:
    """Runs a model over named dataloaders, in evaluation and inference mode.

        setup
        on_test_epoch_start
        for each dataloader, for each batch:
            batch = place(batch)
            outputs = model(**connector(batch)), without the batch's padding
            on_test_batch_end
        on_test_epoch_end
        on_exception, if anything was raised
        teardown, always

    Args:
        model: The model to run, called with keyword arguments. It returns [B, ...] tensors, one or a dict of them.
        dataloaders: The dataloaders by name, in the order in which they are run.
        callbacks: The callbacks, in the order in which they are called.
        connector: The model's keyword arguments and where they stand in the batch.
        place: The function that moves a batch to the model's device.

    Returns:
        The state at the end, with the metrics that hooks returned as `test/name`.

    Raises:
        ConnectorError: If a key of the connector is missing.
    """
    state = new_state()
    announce_tests(state, dataloaders)
    state["num_steps"] = sum(length or 0 for length in state["num_test_batches"] or ())
    state["num_epochs"] = 1
    hooks = Dispatcher(callbacks, state)
    with hooks.running():
        run_test_epoch(model, dataloaders, hooks, connector, place)
    return state


def run_test_epoch(
    model: nn.Module,
    dataloaders: Mapping[str, Iterable[Batch]],
    hooks: Dispatcher,
    connector: DataConnector,
    place: Callable[[Batch], Batch] = lambda batch: batch,
) -> None:
    """Runs the model over the dataloaders once, from on_test_epoch_start to on_test_epoch_end."""
    state = hooks.state
    with evaluation_mode(model):
        hooks.fire("on_test_epoch_start", state, model)
        for dataloader_idx, (name, loader) in enumerate(dataloaders.items()):
            watch = state["stopwatch"] = Stopwatch()
            state["seconds"][name] = watch.seconds
            for batch_idx, loaded in enumerate(loader):
                watch.lap("loader_wait")
                batch = place(loaded)
                watch.lap("copy")
                with torch.inference_mode():
                    outputs = unpad(model(**connector(batch)), batch)
                watch.lap("forward")
                if state["train_dataloader"] is None:
                    state["global_step"] += 1
                hooks.fire("on_test_batch_end", state, model, outputs, batch, batch_idx, dataloader_idx)
                watch.lap("callbacks")
            watch.lap("loader_wait")
        hooks.fire("on_test_epoch_end", state, model, stage="test")


def announce_tests(state: TrainerState, dataloaders: Mapping[str, Iterable[Batch]]) -> None:
    """Enters the test dataloaders and their numbers of batches into a trainer's state."""
    state["test_dataloader"] = dataloaders
    state["num_test_batches"] = [length_of(loader) for loader in dataloaders.values()]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Sets a model to evaluation mode, and afterwards each of its modules back to its own mode."""
    # Frozen TorchScript has no modes.
    modes = {module: module.training for module in model.modules() if hasattr(module, "training")}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def unpad(outputs: Any, batch: Batch) -> Any:
    """Drops the rows for a batch's padding, which are those beyond its `index` [n].

    Of [B, ...] tensors this returns [n, ...] views. A batch without an `index` has no padding. Where several inputs are
    one image, the entry `image_rows` [n] names the row of each.
    """
    if "index" not in batch:
        return outputs
    if isinstance(outputs, Tensor):
        if "image_rows" in batch:
            return outputs[batch["image_rows"].to(outputs.device)]
        return outputs[: len(batch["index"])]
    return {name: unpad(value, batch) for name, value in outputs.items()}


def length_of(loader: Iterable[Batch]) -> int | None:
    """Returns the number of a loader's batches, or None if the loader can't tell."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:  # a DataLoader over a dataset without a length raises it too
        return None
