"""The fit loop. It knows neither disk nor terminal: callbacks do all that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count, islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from embedx.engine.callback import Callback
from embedx.engine.connectors import DataConnector, LossConnector, get_field
from embedx.engine.dispatch import Dispatcher
from embedx.engine.loop import IMAGES, announce_tests, length_of, run_test_epoch, unpad
from embedx.engine.state import Batch, Outputs, TrainerState, new_state
from embedx.errors import ConfigError


class Optimizer(Protocol):
    """What a fit asks of an optimizer: any of torch.optim's has it."""

    param_groups: list[dict[str, Any]]

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        ...

    def step(self, closure: Callable[[], Any]) -> Any:
        """Updates the weights by their gradients; the closure returns the loss that those are of."""
        ...


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long a fit lasts, and what it does how often."""

    limit: int
    """Epochs, or steps, after which it ends; a step is a batch."""
    epoch_based: bool = True
    """Whether `limit` and `test_every` count epochs, or steps."""
    test_every: int | None = None
    """Epochs, or steps, from one test of the model to the next; None: only at the end."""
    batches_per_update: int | None = 1
    """Batches over which gradients are averaged, by rows, for one update of the weights; None: all of an epoch."""


def run_fit(
    model: nn.Module,
    loss_module: nn.Module,
    optimizer: Optimizer,
    dataloader: Iterable[Batch],
    callbacks: Sequence[Callback],
    schedule: Schedule,
    *,
    loss_connector: LossConnector,
    connector: DataConnector = IMAGES,
    test_dataloaders: Mapping[str, Iterable[Batch]] | None = None,
    state: TrainerState | None = None,
) -> TrainerState:
    """Fits a model's weights, batch by batch, until the schedule's limit or until a callback says `should_stop`.

        setup
        for each epoch:
            on_train_epoch_start
            for each batch:
                on_train_batch_start
                outputs = model(**connector(batch)), without the batch's padding
                loss = loss_module(**loss_connector(outputs, batch)), the batch's mean, stored as `train/loss`
                gradients of loss, and, every `batches_per_update`, optimizer.step
                on_train_batch_end
                a test of the model, every `test_every` steps
            on_train_epoch_end, also where the limit or a callback has ended the epoch early
            a test of the model, every `test_every` epochs
        a test of the model, unless the last one was of these weights
        on_exception, if anything was raised
        teardown, always

    A test runs from on_test_epoch_start to on_test_epoch_end, in evaluation and inference mode.

    Args:
        model: Called with keyword arguments; returns [B, ...] tensors, one or a dict of them.
        loss_module: Called with keyword arguments; returns the mean over a batch's rows, a scalar.
        optimizer: Of the model's weights. The loss that its closure returns is not computed anew, so that one which
            asks for it more than once a step, as torch.optim.LBFGS does, is not for this loop.
        dataloader: Iterated once an epoch.
        callbacks: Called in this order.
        schedule: How long, and what how often.
        loss_connector: What the loss gets of the outputs and the batch.
        connector: Which of the batch's values the model gets.
        test_dataloaders: What the model is tested on, by name; None or empty: it isn't.
        state: Where to go on, as a checkpoint has it; None: at the beginning.

    Returns:
        The state at the end, with the metrics that hooks returned as `train/name` and `test/name`.
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


@dataclasses.dataclass
class _Fit:
    """A fit under way; most of this are the arguments of `run_fit`."""

    model: nn.Module
    loss_module: nn.Module
    optimizer: Optimizer
    dataloader: Iterable[Batch]
    schedule: Schedule
    loss_connector: LossConnector
    connector: DataConnector
    tests: Mapping[str, Iterable[Batch]]
    hooks: Dispatcher
    losses: list[Tensor] = dataclasses.field(default_factory=list)
    """Of the batches since the last update, each times its weight."""
    weight: int = 0
    """Of those batches together."""

    @property
    def state(self) -> TrainerState:
        """Where the fit stands."""
        return self.hooks.state

    @property
    def is_over(self) -> bool:
        """Whether no other batch is to come."""
        at_limit = not self.schedule.epoch_based and self.state["global_step"] >= self.schedule.limit
        return at_limit or self.state["should_stop"]

    def run_epoch(self) -> None:
        """One pass over the dataloader, or the rest of one, from on_train_epoch_start to on_train_epoch_end."""
        state = self.state
        self.model.train()
        self.hooks.fire("on_train_epoch_start", state, self.model, self.loss_module)
        done = state["epoch_step"]
        for batch_idx, batch in enumerate(islice(self.dataloader, done, None), done):
            if self.is_over:
                break
            self.hooks.fire("on_train_batch_start", state, self.model, self.loss_module, batch, batch_idx)
            outputs = self.learn(batch)
            state["global_step"] += 1
            state["epoch_step"] += 1
            self.hooks.fire(
                "on_train_batch_end", state, self.model, self.loss_module, outputs, batch, batch_idx, stage="train"
            )
            if not self.schedule.epoch_based:
                self.test_if_due(state["global_step"])
        else:
            if state["epoch_step"] == 0:
                raise ConfigError("the train dataloader has no batches; there is nothing to fit")
            state["epoch_step"] = 0
        if self.losses:
            self.update()
        self.hooks.fire("on_train_epoch_end", state, self.model, self.loss_module, stage="train")
        if self.schedule.epoch_based:
            self.test_if_due(state["current_epoch"] + 1)

    def learn(self, batch: Batch) -> Outputs:
        """Adds a batch's gradients, and updates the weights if that is due; returns the model's outputs."""
        if not self.losses:
            self.optimizer.zero_grad()
        outputs: Outputs = unpad(self.model(**self.connector(batch)), batch)
        loss = self.loss_module(**self.loss_connector(outputs, batch))
        weight = 1 if self.schedule.batches_per_update == 1 else len(get_field(batch, "index", "the batch"))
        (loss * weight).backward()
        self.losses.append(loss.detach() * weight)
        self.weight += weight
        self.state["metrics"]["train/loss"] = loss.detach()
        if len(self.losses) == self.schedule.batches_per_update:
            self.update()
        return outputs

    def update(self) -> None:
        """Has the optimizer take a step, by the mean of what the batches since the last one have added."""
        loss = torch.stack(self.losses).sum() / self.weight
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad /= self.weight
        self.optimizer.step(lambda: loss)
        self.state["metrics"]["train/loss"] = loss
        self.losses, self.weight = [], 0
        self.state["tested"] = False

    def test_if_due(self, done: int) -> None:
        """Tests the model if it is time for that after so many epochs or steps."""
        if self.schedule.test_every and done % self.schedule.test_every == 0:
            self.test()

    def test(self) -> None:
        """Tests the model, if there is something to test it on."""
        self.state["tested"] = True  # before its last hook, as a checkpoint may be written there
        if self.tests:
            run_test_epoch(self.model, self.tests, self.hooks, self.connector)
