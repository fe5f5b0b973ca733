"""The callback that turns batches and outputs into a store, through the writer process."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from embedx.callbacks.finite_rows import FINITE_CHECK, FiniteCheck
from embedx.callbacks.pending_outputs import PendingOutputs, copier_for
from embedx.callbacks.rows_table import rows_table
from embedx.callbacks.writable_outputs import checked_outputs, in_stored_type
from embedx.engine.callback import Callback
from embedx.engine.connectors import CallbackConnector
from embedx.engine.loop import evaluation_mode, unpad
from embedx.engine.state import Batch, Metrics, Outputs, Stopwatch, TrainerState
from embedx.errors import ConfigError
from embedx.names import EMBEDDINGS, RESERVED_SPLITS
from embedx.paths import StorePath, store_path
from embedx.store.format.contents import PlanTerms, StoredRecipe, StoredSettings
from embedx.store.format.layout import Unit
from embedx.store.format.manifest import Manifest
from embedx.store.format.shards import form
from embedx.store.writing.hold import StoreHold
from embedx.store.writing.process import WriterProcess
from embedx.store.writing.session import StoreSession
from embedx.store.writing.unit_rows import UnitBatch, cut_into_units
from embedx.values import rows_per_unit as rows_per_unit_of

_SHARD_SIZE = 128 * 1024**2


class EmbeddingsWriter(Callback):
    """Writes embeddings to a store, in a separate process, so that the forward pass never waits for a disk.

    The batch must have `index` [n] int64, rising within a dataloader, and `keys`. It may have `paths`, `offsets`,
    `targets`, `metadata`, `reasons`, `unavailable`, `bytes`, `mtime_ns` and `sha256`. A row with a reason is rejected,
    or unavailable where that entry is True; rejected is also one that is not finite, or not in the stored type.

    Args:
        output_dir: The store's folder.
        backbone: The model that computes the embeddings from the batch's `images`. None if the outputs already are
            the embeddings, a tensor [n, D] or a dict of them.
        dataloader_idx_map: The split names by dataloader index; None takes the dataloaders' own names.
        group_key: The metadata field each of whose values gets a sub-folder; None makes no sub-folders.
        overwrite: True replaces an existing store once the new one is complete; False refuses it.
        dtype: The type of the stored floats; None keeps that of the outputs.
        rows_per_unit: The number of rows after which files are closed and committed. None takes as many whole batches
            as make shards of about 128 MiB, by the size of the first batch's rows.
        recipe: The recipe to record for these embeddings, as plain JSON values.
        session: The store, begun and later closed by the caller; `output_dir`, `overwrite`, `recipe` and
            `rows_per_unit` are then taken from it.
        allow_nonfinite: True stores rows with NaN or infinity as they are.
        finite_check: The check of the rows, unless they are allowed to be anything.
        batch_rows: The rows that are handed over together, if the first batch has fewer than later ones.
        test_connector: The places of `embeddings` and of the batch's entries, where they are not the usual ones.

    Raises:
        ConfigError: If `rows_per_unit` is below 1.
    """

    def __init__(
        self,
        output_dir: str | StorePath,
        backbone: nn.Module | None = None,
        dataloader_idx_map: Mapping[int, str] | None = None,
        group_key: str | None = None,
        overwrite: bool = True,
        *,
        dtype: torch.dtype | None = None,
        rows_per_unit: int | None = None,
        recipe: Mapping[str, Any] | None = None,
        session: StoreHold | None = None,
        allow_nonfinite: bool = False,
        finite_check: FiniteCheck = FINITE_CHECK,
        batch_rows: int = 1,
        test_connector: CallbackConnector | None = None,
    ) -> None:
        super().__init__(test_connector=test_connector)
        self.output_dir = store_path(output_dir)
        self.backbone = backbone
        self.dataloader_idx_map = dataloader_idx_map
        self.group_key = group_key
        self.overwrite = overwrite
        self.dtype = dtype
        self.rows_per_unit = rows_per_unit
        self.recipe = dict(recipe or {})
        self.allow_nonfinite = allow_nonfinite
        self._batch_rows = batch_rows
        self._finite_check = None if allow_nonfinite else finite_check
        self._session = session
        self._owns_session = session is None
        self._process: WriterProcess | None = None
        self._pending: PendingOutputs[pa.Table] | None = None
        self._last_index: dict[str, int] = {}
        self._forms: dict[str, str] = {}
        self.rows_saved: int | None = None
        """The number of rows that an interrupted run has brought to disk; None if it isn't known."""
        if rows_per_unit is not None and rows_per_unit < 1:
            raise ConfigError(f"rows_per_unit is {rows_per_unit}; give a whole number of at least 1, or None")

    def setup(self) -> None:
        """Opens the store and locks it.

        Raises:
            StoreMismatchError: If the folder holds something else, or holds a store and `overwrite` is False.
        """
        if self._session is None:
            self._session = StoreSession.begin(
                self.output_dir,
                Manifest(
                    StoredRecipe.from_json(self.recipe),
                    PlanTerms(self.group_key, self.rows_per_unit),
                    settings=StoredSettings(allow_nonfinite=self.allow_nonfinite or None),
                ),
                mode="overwrite" if self.overwrite else "create",
            )
        self._last_index.clear()
        self._forms.clear()
        self._pending = None

    def on_test_epoch_start(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Checks the dataloaders' split names.

        Raises:
            ConfigError: If a dataloader has none, or one that is reserved or another dataloader's.
        """
        names = [self._split_name(trainer_state, index) for index in range(len(trainer_state["test_dataloader"] or ()))]
        counts = Counter(name.lower() for name in names)  # not every file system tells names that differ in case alone
        if twice := sorted(name for name in set(names) if counts[name.lower()] > 1):
            raise ConfigError(f"two dataloaders have the split name {' and '.join(twice)}; give each its own")
        if reserved := [name for name in names if not name or name.lower() in RESERVED_SPLITS]:
            raise ConfigError(f"a split can't be named {reserved[0]!r}; give its dataloader another name")

    def on_test_batch_end(
        self,
        trainer_state: TrainerState,
        model: nn.Module,
        outputs: Outputs,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Starts copying the outputs from the device, and hands those that have arrived to the writer process.

        The next forward pass may overwrite the outputs.

        Raises:
            WriterError: If the writer process has failed.
            ConfigError: If the batch or the outputs lack an entry, or have an unfit one.
        """
        if self.backbone is not None:
            with evaluation_mode(self.backbone), torch.inference_mode():
                outputs = unpad(self.backbone(batch["images"]), batch)
        if self.test_connector is not None:
            inputs = self.get_test_callback_inputs(outputs, batch)
            outputs = {EMBEDDINGS: inputs.pop(EMBEDDINGS)} if EMBEDDINGS in inputs else outputs
            batch = {**batch, **inputs}
        split = self._split_name(trainer_state, dataloader_idx)
        rows = rows_table(batch, split, self.group_key)
        checked = checked_outputs(outputs, len(rows))
        tensors = in_stored_type(checked, self.dtype)
        if "image_rows" not in batch:  # then a unit's rows come in the order of its images
            self._check_order(split, batch["index"])
        self._check_forms(tensors)
        if len(rows) == 0:
            return
        if self._pending is None:
            self._pending = PendingOutputs(copier_for(tensors[EMBEDDINGS].device))
        check = self._finite_check
        self._pending.add(rows, tensors if check is None else check.with_largest(checked, tensors))
        lengths = trainer_state["num_test_batches"]
        is_last = lengths is not None and lengths[dataloader_idx] == batch_idx + 1
        trainer_state["stopwatch"].lap("callbacks")
        self._hand_over(self._pending.complete(wait_for_all=is_last), trainer_state["stopwatch"])

    def on_test_epoch_end(self, trainer_state: TrainerState, model: nn.Module) -> Metrics:
        """Waits until everything is written, and declares the store complete.

        Raises:
            WriterError: If anything could not be written.
            StoreError: If the store does not have every input exactly once.
        """
        self._hand_over_all()
        for unit in self._session_begun.earlier.units:  # in which nothing had to be computed
            self._put_earlier(self._process_started({}), unit)
        if self._process is not None:
            self._process.close()
            self._process = None
        numbers = {name.removeprefix("test/"): float(value) for name, value in trainer_state["metrics"].items()}
        timings = {name: number for name, number in numbers.items() if math.isfinite(number)}  # as JSON has no others
        totals = self._session_begun.finish(timings).totals
        return {"rows": sum(split.rows for split in totals.values())}

    def on_exception(self, trainer_state: TrainerState, error: BaseException) -> None:
        """Ends the writer process, which journals the unit under way unless the run can't succeed as it is."""
        if self._process is None:
            return
        try:
            if self._session_begun.terms.journal_seconds is not None and not isinstance(error, ConfigError):
                # The run has failed already, by the error that is told.
                with contextlib.suppress(Exception):
                    self._hand_over_all()
                with contextlib.suppress(Exception):
                    self.rows_saved = self._process.save()
        finally:
            self._process.abort()
            self._process = None

    def teardown(self) -> None:
        """Closes the store, unless it is the caller's."""
        if self._owns_session and self._session is not None:
            self._session.close()
            self._session = None

    @property
    def _session_begun(self) -> StoreHold:
        if self._session is None:
            raise RuntimeError("EmbeddingsWriter.setup() has not been called")
        return self._session

    def _process_started(self, first: Mapping[str, Tensor]) -> WriterProcess:
        """Returns the writer process; starts it with the first batch, whose size tells how much memory to share."""
        if self._process is None:
            session = self._session_begun
            self._process = WriterProcess(session.terms, first, rows=self._batch_rows, on_commit=session.on_commit)
            for unit in self._session_begun.earlier.whole:
                self._put_earlier(self._process, unit)
        return self._process

    def _put_earlier(self, process: WriterProcess, unit: Unit) -> None:
        for rows in self._session_begun.earlier.take(unit):
            process.put_earlier(rows)

    def _split_name(self, trainer_state: TrainerState, dataloader_idx: int) -> str:
        names = self.dataloader_idx_map
        if names is None:
            names = dict(enumerate(trainer_state["test_dataloader"] or ()))
        if dataloader_idx not in names:
            raise ConfigError(
                f"dataloader {dataloader_idx} has no split name; dataloader_idx_map names {sorted(names) or 'none'}"
            )
        return names[dataloader_idx]

    def _check_order(self, split: str, index: Tensor) -> None:
        last = self._last_index.get(split, -1)
        if len(index) and (int(index[0]) <= last or not bool((index.diff() > 0).all())):
            raise ConfigError(
                f"split {split!r}: the batch's index does not rise (after {last} came {index.tolist()[:8]}); "
                "iterate the dataloader in order, without shuffling"
            )
        if len(index):
            self._last_index[split] = int(index[-1])

    def _check_forms(self, tensors: Mapping[str, Tensor]) -> None:
        forms = {name: form(tensor) for name, tensor in tensors.items()}
        self._forms = self._forms or forms
        if forms != self._forms:
            raise ConfigError(f"a batch's outputs are {forms}, but the first batch's {self._forms}; give all one form")

    def _hand_over_all(self) -> None:
        if self._pending is not None:
            self._hand_over(self._pending.complete(wait_for_all=True), Stopwatch())

    def _hand_over(self, complete: Iterable[tuple[pa.Table, dict[str, Tensor]]], watch: Stopwatch) -> None:
        """Puts outputs into the writer process's queue, and books the waiting for the device and for that process."""
        session = self._session_begun
        for rows, tensors in complete:
            watch.lap("forward")
            if self._finite_check is not None:
                rows = self._finite_check.judged(rows, tensors)
            if session.manifest.plan.rows_per_unit is None:
                row_bytes = sum(tensor[:1].nbytes for tensor in tensors.values())
                session.set_rows_per_unit(rows_per_unit_of(_SHARD_SIZE, row_bytes, len(rows)))
            process = self._process_started(tensors)
            for unit, start, stop in cut_into_units(rows, session.terms.rows_per_unit):
                self._put_earlier(process, unit)
                process.put(UnitBatch(unit, tensors, rows).part(start, stop))
            watch.lap("writer_wait")
        watch.lap("forward")
