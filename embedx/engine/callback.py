"""The base class of callbacks, whose hooks do nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from embedx.engine.connectors import CallbackConnector
from embedx.errors import ConnectorError

if TYPE_CHECKING:
    from embedx.engine.state import Batch, Metrics, Outputs, TrainerState

HOOKS = (
    "setup",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_test_epoch_start",
    "on_test_batch_end",
    "on_test_epoch_end",
    "on_exception",
    "teardown",
)
"""The names of all hooks. A hook that a class does not override is never called, and costs nothing."""


class Callback:
    """The base class of callbacks.

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
        """Hook to run at the beginning of a training epoch.

        Args:
            trainer_state: The state of the run.
            model: The model that is trained.
            loss_module: The loss of the training.
        """

    def on_train_batch_start(
        self, trainer_state: TrainerState, model: nn.Module, loss_module: nn.Module, batch: Batch, batch_idx: int
    ) -> None:
        """Hook to run at the beginning of a training batch.

        Args:
            trainer_state: The state of the run.
            model: The model that is trained.
            loss_module: The loss of the training.
            batch: The batch, as the dataloader yielded it.
            batch_idx: The number of the batch in its epoch, from 0.
        """

    def on_train_batch_end(
        self,
        trainer_state: TrainerState,
        model: nn.Module,
        loss_module: nn.Module,
        outputs: Outputs,
        batch: Batch,
        batch_idx: int,
    ) -> Metrics | None:
        """Hook to run at the end of a training batch.

        Args:
            trainer_state: The state of the run.
            model: The model that is trained.
            loss_module: The loss of the training.
            outputs: The model's outputs, without the rows for padding.
            batch: The batch, as the dataloader yielded it.
            batch_idx: The number of the batch in its epoch, from 0.

        Returns:
            Metrics to collect as `train/name`, or None.
        """
        return None

    def on_train_epoch_end(
        self, trainer_state: TrainerState, model: nn.Module, loss_module: nn.Module
    ) -> Metrics | None:
        """Hook to run at the end of a training epoch, also if a step limit or a callback ended it early.

        Args:
            trainer_state: The state of the run.
            model: The model that is trained.
            loss_module: The loss of the training.

        Returns:
            Metrics to collect as `train/name`, or None.
        """
        return None

    def on_test_epoch_start(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Hook to run at the beginning of a test.

        Args:
            trainer_state: The state of the run.
            model: The model that is tested.
        """

    def on_test_batch_end(
        self,
        trainer_state: TrainerState,
        model: nn.Module,
        outputs: Outputs,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Hook to run at the end of a test batch.

        Args:
            trainer_state: The state of the run.
            model: The model that is tested.
            outputs: The model's outputs, without the rows for padding.
            batch: The batch, as the dataloader yielded it.
            batch_idx: The number of the batch in its dataloader, from 0.
            dataloader_idx: The number of the dataloader, from 0.
        """

    def on_test_epoch_end(self, trainer_state: TrainerState, model: nn.Module) -> Metrics | None:
        """Hook to run at the end of a test.

        Args:
            trainer_state: The state of the run.
            model: The model that is tested.

        Returns:
            Metrics to collect as `test/name`, or None.
        """
        return None

    def on_exception(self, trainer_state: TrainerState, error: BaseException) -> None:
        """Hook to run after an error, Ctrl-C included, which is raised again afterwards.

        Args:
            trainer_state: The state of the run.
            error: The error that was raised.
        """

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
