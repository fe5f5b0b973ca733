"""Gathers computed rows in memory, as a store would hold them."""

from __future__ import annotations

from collections import defaultdict

import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from embedx.callbacks.finite_rows import FiniteCheck
from embedx.callbacks.rows_table import rows_table
from embedx.callbacks.writable_outputs import checked_outputs, in_stored_type
from embedx.engine.callback import Callback
from embedx.engine.state import Batch, Outputs, TrainerState
from embedx.errors import InputError
from embedx.store.format.index import OK


class GatheredRows(Callback):
    """Gathers the rows of all batches; an input that gives none ends the run.

    Args:
        dtype: The type of the rows' floats.
        finite_check: The check of the rows; None takes them as they are.
    """

    def __init__(self, dtype: torch.dtype, finite_check: FiniteCheck | None) -> None:
        super().__init__()
        self._dtype = dtype
        self._check = finite_check
        self._parts: defaultdict[str, list[Tensor]] = defaultdict(list)

    def on_test_batch_end(
        self,
        trainer_state: TrainerState,
        model: nn.Module,
        outputs: Outputs,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Copies the outputs, as the next forward pass may overwrite them.

        Raises:
            InputError: If an input was not read or decoded, or its row is not finite; it names the input.
        """
        rows = rows_table(batch, "images", None)
        checked = checked_outputs(outputs, len(rows))
        tensors = in_stored_type(checked, self._dtype)
        if self._check is not None:
            tensors = self._check.with_largest(checked, tensors)
        tensors = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        if self._check is not None:
            rows = self._check.judged(rows, tensors)
        for row in rows.filter(pc.not_equal(rows["status"], OK)).slice(0, 1).to_pylist():
            raise InputError(f"{row['key']}: {row['reason']}; repair it, or leave it out")
        for name, tensor in tensors.items():
            self._parts[name].append(tensor)

    def rows(self, name: str) -> Tensor:
        """Returns one output's rows of all batches."""
        return torch.cat(self._parts[name])
