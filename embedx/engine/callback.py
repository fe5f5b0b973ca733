"""The base of all callbacks: every hook, doing nothing."""

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
"""Names of all hooks. One that a class does not override is never called, and costs nothing."""


class Callback:
    """Base class of callbacks.

    Args:
        epoch_based: Whether the callback counts in epochs; otherwise in steps.
        train_connector: What `get_train_callback_inputs` hands out.
        test_connector: What `get_test_callback_inputs` hands out.
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
        """Hook to run once, before anything else."""

    def on_train_epoch_start(self, trainer_state: TrainerState, model: nn.Module, loss_module: nn.Module) -> None:
        """Hook to run at the beginning of a training epoch.

        Args:
            trainer_state: Where the run stands.
            model: The model that is trained.
            loss_module: Its loss.
        """

    def on_train_batch_start(
        self,
        trainer_state: TrainerState,
        model: nn.Module,
        loss_module: nn.Module,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Hook to run at the beginning of a training batch.

        Args:
            trainer_state: Where the run stands.
            model: The model that is trained.
            loss_module: Its loss.
            batch: What the dataloader yielded.
            batch_idx: Number of the batch in its epoch.
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
            trainer_state: Where the run stands.
            model: The model that is trained.
            loss_module: Its loss.
            outputs: What the model returned.
            batch: What the dataloader yielded.
            batch_idx: Number of the batch in its epoch.

        Returns:
            Metrics, if any, collected as `train/name`.
        """
        return None

    def on_train_epoch_end(
        self, trainer_state: TrainerState, model: nn.Module, loss_module: nn.Module
    ) -> Metrics | None:
        """Hook to run at the end of a training epoch, also of one that a step limit ends early.

        Args:
            trainer_state: Where the run stands.
            model: The model that is trained.
            loss_module: Its loss.

        Returns:
            Metrics, if any, collected as `train/name`.
        """
        return None

    def on_test_epoch_start(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Hook to run at the beginning of a testing epoch.

        Args:
            trainer_state: Where the run stands.
            model: The model that is run.
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
        """Hook to run at the end of a testing batch.

        Args:
            trainer_state: Where the run stands.
            model: The model that is run.
            outputs: What the model returned, without padding.
            batch: What the dataloader yielded.
            batch_idx: Number of the batch in its dataloader.
            dataloader_idx: Number of the dataloader.
        """

    def on_test_epoch_end(self, trainer_state: TrainerState, model: nn.Module) -> Metrics | None:
        """Hook to run at the end of a testing epoch.

        Args:
            trainer_state: Where the run stands.
            model: The model that is run.

        Returns:
            Metrics, if any, collected as `test/name`.
        """
        return None

    def on_exception(self, trainer_state: TrainerState, error: BaseException) -> None:
        """Hook to run when anything was raised, Ctrl-C included; the error goes on afterwards.

        Args:
            trainer_state: Where the run stands.
            error: What was raised.
        """

    def teardown(self) -> None:
        """Hook to run once, after everything else, whatever happened; nothing may be left behind."""

    def get_train_callback_inputs(self, outputs: Outputs, batch: Batch) -> dict[str, Any]:
        """What the train connector makes of a batch and its outputs.

        Raises:
            ConnectorError: If the callback has none, or a key is not there.
        """
        return self._connect(self.train_connector, "train", outputs, batch)

    def get_test_callback_inputs(self, outputs: Outputs, batch: Batch) -> dict[str, Any]:
        """What the test connector makes of a batch and its outputs.

        Raises:
            ConnectorError: If the callback has none, or a key is not there.
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
