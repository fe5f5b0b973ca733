"""The fit loop. It knows neither disk nor terminal: callbacks do all that."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from itertools import count, islice
from typing import Any

from torch import nn, optim

from embedx.engine.callback import Callback
from embedx.engine.connectors import DataConnector, LossConnector
from embedx.engine.dispatch import Dispatcher
from embedx.engine.loop import IMAGES, announce_tests, length_of, run_test_epoch, unpad
from embedx.engine.state import Batch, Outputs, TrainerState, new_state
from embedx.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The length of a fit, and how often it tests the model."""

    limit: int
    """The number of epochs, or steps, after which the fit ends; a step is a batch."""
    epoch_based: bool = True
    """True if `limit` and `test_every` count epochs, False if they count steps."""
    test_every: int | None = None
    """The number of epochs, or steps, from one test of the model to the next; None tests only at the end."""


def run_fit(
    model: nn.Module,
    loss_module: nn.Module,
    optimizer: optim.Optimizer,
    dataloader: Iterable[Batch],
    callbacks: Sequence[Callback],
    schedule: Schedule,
    *,
    loss_connector: LossConnector,
    connector: DataConnector = IMAGES,
    test_dataloaders: Mapping[str, Iterable[Batch]] | None = None,
    state: TrainerState | None = None,
) -> TrainerState:
    """Fits a model's weights, batch by batch, until the schedule's limit or until a callback sets `should_stop`.

        setup
        for each epoch:
            on_train_epoch_start
            for each batch:
                on_train_batch_start
                optimizer.step(closure), where closure, called once or, by torch.optim.LBFGS, several times, computes
                    outputs = model(**connector(batch)), without the batch's padding
                    loss = loss_module(**loss_connector(outputs, batch)), and its gradients
                `train/loss` = the loss before the step
                on_train_batch_end
                a test of the model, every `test_every` steps
            on_train_epoch_end, also where the limit or a callback has ended the epoch early
            a test of the model, every `test_every` epochs
        a test of the model, unless the last one was of these weights
        on_exception, if anything was raised
        teardown, always

    A test runs from on_test_epoch_start to on_test_epoch_end, in evaluation and inference mode.

    Args:
        model: The model to fit, called with keyword arguments. It returns [B, ...] tensors, one or a dict of them.
        loss_module: The loss, called with keyword arguments. It returns a scalar, such as the mean over a batch's rows.
        optimizer: The optimizer of the model's weights.
        dataloader: The batches to learn from, iterated once an epoch.
        callbacks: The callbacks, in the order in which they are called.
        schedule: The length of the fit and the distance of its tests.
        loss_connector: The loss's keyword arguments and where they stand in the outputs and the batch.
        connector: The model's keyword arguments and where they stand in the batch.
        test_dataloaders: The dataloaders to test the model on, by name; None or empty tests nothing.
        state: The state from which to go on, as a checkpoint restores it; None begins anew.

    Returns:
        The state at the end, with the metrics that hooks returned as `train/name` and `test/name`.

    Raises:
        ConfigError: If the dataloader has no batches.
        ConnectorError: If a connector's key is missing.
    """
    state = new_state() if state is None else state
    tests = test_dataloaders or {}
    begun = state["global_step"] > 0
    first = state["current_epoch"] + (begun and state["epoch_step"] == 0)
    announce_tests(state, tests)
    length = length_of(dataloader)
    state["train_dataloader"], state["num_train_batches"] = dataloader, length
    state["num_epochs"] = schedule.limit if schedule.epoch_based else 0
    state["num_steps"] = (length or 0) * schedule.limit if schedule.epoch_based else schedule.limit
    state["optimizers"] = [optimizer]
    hooks = Dispatcher(callbacks, state)
    fit = _Fit(model, loss_module, optimizer, dataloader, schedule, loss_connector, connector, tests, hooks)
    with hooks.running():
        if begun and not state["tested"]:
            fit.test_if_due(first if schedule.epoch_based else state["global_step"])
        for epoch in range(first, schedule.limit) if schedule.epoch_based else count(first):
            if fit.is_over:
                break
            state["current_epoch"] = epoch
            fit.run_epoch()
        if not state["tested"]:
            fit.test()
    return state


@dataclasses.dataclass(frozen=True)
class _Fit:
    """The arguments of `run_fit`, and the pieces of its loop."""

    model: nn.Module
    loss_module: nn.Module
    optimizer: optim.Optimizer
    dataloader: Iterable[Batch]
    schedule: Schedule
    loss_connector: LossConnector
    connector: DataConnector
    tests: Mapping[str, Iterable[Batch]]
    hooks: Dispatcher

    @property
    def is_over(self) -> bool:
        """True if the limit is reached or a callback has set `should_stop`."""
        state = self.hooks.state
        at_limit = not self.schedule.epoch_based and state["global_step"] >= self.schedule.limit
        return at_limit or state["should_stop"]

    def run_epoch(self) -> None:
        """Runs one epoch, or the rest of one, from on_train_epoch_start to on_train_epoch_end."""
        state, fire, modules = self.hooks.state, self.hooks.fire, (self.model, self.loss_module)
        self.model.train()
        fire("on_train_epoch_start", state, *modules)
        done = state["epoch_step"]
        for batch_idx, batch in enumerate(islice(self.dataloader, done, None), done):
            if self.is_over:
                break
            fire("on_train_batch_start", state, *modules, batch, batch_idx)
            outputs = self.step(batch)
            state["global_step"] += 1
            state["epoch_step"] += 1
            fire("on_train_batch_end", state, *modules, outputs, batch, batch_idx, stage="train")
            if not self.schedule.epoch_based:
                self.test_if_due(state["global_step"])
        else:
            if state["epoch_step"] == 0:
                raise ConfigError("the train dataloader has no batches; there is nothing to fit")
            state["epoch_step"] = 0
        fire("on_train_epoch_end", state, *modules, stage="train")
        if self.schedule.epoch_based:
            self.test_if_due(state["current_epoch"] + 1)

    def step(self, batch: Batch) -> Outputs:
        """Updates the weights by one batch; returns the model's last outputs for it."""
        outputs: Outputs = {}

        def closure() -> Any:
            nonlocal outputs
            self.optimizer.zero_grad()
            outputs = unpad(self.model(**self.connector(batch)), batch)
            loss = self.loss_module(**self.loss_connector(outputs, batch))
            loss.backward()
            return loss

        loss: Any = self.optimizer.step(closure)
        self.hooks.state["metrics"]["train/loss"] = loss.detach()
        self.hooks.state["tested"] = False
        return outputs

    def test_if_due(self, done: int) -> None:
        """Tests the model if a test is due after `done` epochs or steps."""
        if self.schedule.test_every and done % self.schedule.test_every == 0:
            self.test()

    def test(self) -> None:
        """Tests the model on the test dataloaders, if there are any."""
        self.hooks.state["tested"] = True  # before the test's last hook, as a checkpoint may be written there
        if self.tests:
            run_test_epoch(self.model, self.tests, self.hooks, self.connector)
