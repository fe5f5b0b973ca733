"""The base class of callbacks, whose hooks do nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from embedx.engine.connectors import CallbackConnector
from embedx.errors import ConnectorError

if TYPE_CHECKING:
    from embedx.engine.state import Batch, Metrics, Outputs, TrainerState


class Callback:
    """The base class of callbacks.

    The arguments of the hooks:
        trainer_state: The state of the run.
        model, loss_module: The model that is trained or tested, and the loss of the training.
        batch, outputs: The batch, as the dataloader yielded it, and the model's outputs for it, without its padding.
        batch_idx, dataloader_idx: The number of the batch in its dataloader, and that of the dataloader, from 0.

    Metrics that a hook returns are collected as `train/name` or `test/name`.

    Args:
        epoch_based: True if the callback counts in epochs, False if it counts in steps.
        train_connector: The connector that `get_train_callback_inputs` applies.
        test_connector: The connector that `get_test_callback_inputs` applies.
    """

    def __init__(
        self,
        epoch_based: bool = True,
        train_connector: CallbackConnector | None = None,
        test_connector: CallbackConnector | None = None,
    ) -> None:
        self.epoch_based = epoch_based
        self.train_connector = train_connector
        self.test_connector = test_connector

    def setup(self) -> None:
        """Hook to run at the beginning of a run, once."""

    def on_train_epoch_start(self, trainer_state: TrainerState, model: nn.Module, loss_module: nn.Module) -> None:
        """Hook to run at the beginning of a training epoch."""

    def on_train_batch_start(
        self, trainer_state: TrainerState, model: nn.Module, loss_module: nn.Module, batch: Batch, batch_idx: int
    ) -> None:
        """Hook to run at the beginning of a training batch."""

    def on_train_batch_end(
        self,
        trainer_state: TrainerState,
        model: nn.Module,
        loss_module: nn.Module,
        outputs: Outputs,
        batch: Batch,
        batch_idx: int,
    ) -> Metrics | None:
        """Hook to run at the end of a training batch; it may return metrics."""
        return None

    def on_train_epoch_end(
        self, trainer_state: TrainerState, model: nn.Module, loss_module: nn.Module
    ) -> Metrics | None:
        """Hook to run at the end of a training epoch, even one that ended early; it may return metrics."""
        return None

    def on_test_epoch_start(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Hook to run at the beginning of a test."""

    def on_test_batch_end(
        self,
        trainer_state: TrainerState,
        model: nn.Module,
        outputs: Outputs,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Hook to run at the end of a test batch."""

    def on_test_epoch_end(self, trainer_state: TrainerState, model: nn.Module) -> Metrics | None:
        """Hook to run at the end of a test; it may return metrics."""
        return None

    def on_exception(self, trainer_state: TrainerState, error: BaseException) -> None:
        """Hook to run after an error, Ctrl-C included, which is raised again afterwards."""

    def teardown(self) -> None:
        """Hook to run at the end of a run, once, also after an error; no process or file may be left behind."""

    def get_train_callback_inputs(self, outputs: Outputs, batch: Batch) -> dict[str, Any]:
        """Applies the train connector to a batch and its outputs.

        Raises:
            ConnectorError: If the callback has no train connector, or a key is missing.
        """
        return self._connect(self.train_connector, "train", outputs, batch)

    def get_test_callback_inputs(self, outputs: Outputs, batch: Batch) -> dict[str, Any]:
        """Applies the test connector to a batch and its outputs.

        Raises:
            ConnectorError: If the callback has no test connector, or a key is missing.
        """
        return self._connect(self.test_connector, "test", outputs, batch)

    def _connect(
        self, connector: CallbackConnector | None, stage: str, outputs: Outputs, batch: Batch
    ) -> dict[str, Any]:
        if connector is None:
            raise ConnectorError(
                f"{type(self).__name__} has no {stage}_connector; give it one, such as "
                f"{stage}_connector=CallbackConnector({{'embeddings': pred_key('embeddings')}})"
            )
        return connector(outputs, batch)


HOOKS = tuple(name for name in vars(Callback) if name in ("setup", "teardown") or name.startswith("on_"))
"""The names of all hooks. A hook that a class does not override is never called, and costs nothing."""
