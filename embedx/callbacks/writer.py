"""The callback that turns batches and outputs into a store, through the writer process."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from embedx.callbacks.results import Results, copies_from
from embedx.engine.callback import Callback
from embedx.engine.connectors import CallbackConnector
from embedx.engine.loop import evaluation_mode, unpad
from embedx.engine.state import Batch, Metrics, Outputs, TrainerState
from embedx.engine.stopwatch import Stopwatch
from embedx.errors import ConfigError
from embedx.names import EMBEDDINGS, INDEX, RESERVED_COLUMNS, RESERVED_SPLITS, TARGETS
from embedx.store.format.index import OK, REJECTED, ROW_SCHEMA
from embedx.store.format.layout import Unit
from embedx.store.format.manifest import Manifest
from embedx.store.format.shards import form
from embedx.store.writing.process import WriterProcess
from embedx.store.writing.session import StoreSession
from embedx.store.writing.units import UNKNOWN_TARGET, UnitBatch
from embedx.values import rows_per_unit as rows_per_unit_of

_SHARD_SIZE = 128 * 1024**2


class _Identities(NamedTuple):
    """What a batch's results belong to."""

    split: str
    places: list[int]
    """The batch's `index`."""
    rows: pa.Table


class EmbeddingsWriter(Callback):
    """Writes embeddings to a store, in a separate process, so that the forward pass never waits for a disk.

    The batch must have `index` [n] int64, rising within a dataloader, and `keys`; `paths`, `offsets`, `targets`,
    `metadata`, `reasons`, `bytes`, `mtime_ns` and `sha256` are taken where they are there. A row with a reason is
    rejected.

    Args:
        output_dir: The store.
        backbone: Computes the embeddings from the batch's `images`; None if the outputs already are the
            embeddings, a tensor [n, D] or a dict of them.
        dataloader_idx_map: Split names by dataloader index. Without it, the dataloaders' own names.
        group_key: The metadata field that names a sub-folder per value.
        overwrite: Whether a store that is there is replaced, once the new one is complete, or refused.
        dtype: Type of the stored numbers; None keeps the outputs'.
        rows_per_unit: Rows after which files are closed and committed; None: as many whole batches, by the size of
            the first one's rows, as make shards of about 128 MiB.
        recipe: What is stored as the recipe of these embeddings; plain JSON values.
        session: A store that the caller has begun, and will close; `output_dir`, `overwrite`, `recipe` and
            `rows_per_unit` are then the session's.
        test_connector: Where to find `embeddings`, and any of the batch's entries, if not in their places.
    """

    def __init__(
        self,
        output_dir: str | Path,
        backbone: nn.Module | None = None,
        dataloader_idx_map: Mapping[int, str] | None = None,
        group_key: str | None = None,
        overwrite: bool = True,
        *,
        dtype: torch.dtype | None = None,
        rows_per_unit: int | None = None,
        recipe: Mapping[str, Any] | None = None,
        session: StoreSession | None = None,
        test_connector: CallbackConnector | None = None,
    ) -> None:
        super().__init__(test_connector=test_connector)
        self.output_dir = Path(output_dir)
        self.backbone = backbone
        self.dataloader_idx_map = dataloader_idx_map
        self.group_key = group_key
        self.overwrite = overwrite
        self.dtype = dtype
        self.rows_per_unit = rows_per_unit
        self.recipe = dict(recipe or {})
        self._session = session
        self._owns_session = session is None
        self._process: WriterProcess | None = None
        self._results: Results[_Identities] | None = None
        self._last_index: dict[str, int] = {}
        self._forms: dict[str, str] = {}
        if rows_per_unit is not None and rows_per_unit < 1:
            raise ConfigError(f"rows_per_unit is {rows_per_unit}; give a whole number of at least 1, or None")

    def setup(self) -> None:
        """Takes hold of the store.

        Raises:
            StoreMismatchError: If the folder is not a store, or one and `overwrite` is False.
        """
        if self._session is None:
            plan: dict[str, Any] = {"group_key": self.group_key, "rows_per_unit": self.rows_per_unit, "splits": {}}
            self._session = StoreSession.begin(
                self.output_dir,
                Manifest(recipe=self.recipe, plan=plan, environment={}),
                mode="overwrite" if self.overwrite else "create",
            )
        self._last_index.clear()
        self._forms.clear()
        self._results = None

    def on_test_epoch_start(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Checks that every dataloader has a split name of its own, and one that a split can have.

        Raises:
            ConfigError: If not.
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
        """Hands what has come from the device to the writer process, waiting only while its queue is full.

        The outputs may be overwritten by the next forward pass.

        Raises:
            WriterError: If that process has failed.
            ConfigError: If the batch lacks what is needed.
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
        tensors = _stored(outputs, len(rows), self.dtype)
        self._check_order(split, batch["index"])
        self._check_forms(tensors)
        if len(rows) == 0:
            return
        self._results = self._results or Results(copies_from(tensors[EMBEDDINGS].device))
        self._results.send(_Identities(split, batch["index"].tolist(), rows), tensors)
        lengths = trainer_state["num_test_batches"]
        is_last = lengths is not None and lengths[dataloader_idx] == batch_idx + 1
        seconds = trainer_state["seconds"].setdefault(split, {})
        for part, spent in self._hand_over(self._results.arrived(until_empty=is_last)).items():
            seconds[part] = seconds.get(part, 0.0) + spent
            seconds["callbacks"] = seconds.get("callbacks", 0.0) - spent  # to which the loop adds all of this hook

    def on_test_epoch_end(self, trainer_state: TrainerState, model: nn.Module) -> Metrics:
        """Waits until all is written, and declares the store complete.

        Raises:
            WriterError: If anything could not be written.
            StoreError: If the store does not have every input exactly once.
        """
        if self._session is None:
            raise RuntimeError("EmbeddingsWriter.setup() has not been called")
        if self._results is not None:
            self._hand_over(self._results.arrived(until_empty=True))
        for unit, staying in self._session.staying.items():  # of units in which nothing had to be computed
            self._process = self._process or WriterProcess(self._session.terms, {})
            self._process.put(UnitBatch(unit, {}, staying))
        if self._process is not None:
            self._process.close()
            self._process = None
        numbers = {name.removeprefix("test/"): float(value) for name, value in trainer_state["metrics"].items()}
        timings = {name: number for name, number in numbers.items() if math.isfinite(number)}  # as JSON has no others
        totals = self._session.finish(timings).totals
        return {"rows": sum(split["rows"] for split in totals.values())}

    def on_exception(self, trainer_state: TrainerState, error: BaseException) -> None:
        """Ends the writer process; the unit under way is dropped."""
        if self._process is not None:
            self._process.abort()
            self._process = None

    def teardown(self) -> None:
        """Lets go of the store."""
        if self._owns_session and self._session is not None:
            self._session.close()
            self._session = None

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

    def _hand_over(self, arrived: Iterable[tuple[_Identities, dict[str, Tensor]]]) -> dict[str, float]:
        """Hands results to the writer process; returns the seconds that the device and that process were waited for."""
        if self._session is None:
            raise RuntimeError("EmbeddingsWriter.setup() has not been called")
        watch = Stopwatch()
        for (split, places, rows), tensors in arrived:
            watch.lap("forward")
            if self._process is None:
                if self._session.manifest.plan["rows_per_unit"] is None:
                    row_bytes = sum(tensor[:1].nbytes for tensor in tensors.values())
                    self._session.set_rows_per_unit(rows_per_unit_of(_SHARD_SIZE, row_bytes, len(rows)))
                self._process = WriterProcess(self._session.terms, tensors)
            for unit, start, stop in _units(split, places, self._session.terms.rows_per_unit):
                if (staying := self._session.staying.pop(unit, None)) is not None:
                    self._process.put(UnitBatch(unit, {}, staying))
                self._process.put(UnitBatch(unit, tensors, rows).part(start, stop))
            watch.lap("writer_wait")
        watch.lap("forward")
        return watch.seconds


def _units(split: str, places: Sequence[int], rows_per_unit: int) -> Iterator[tuple[Unit, int, int]]:
    """Cuts a batch where one unit ends and the next begins: (unit, first position, position behind)."""
    numbers = [place // rows_per_unit for place in places]
    for number in dict.fromkeys(numbers):
        start = numbers.index(number)
        yield Unit(split, number), start, start + numbers.count(number)


def rows_table(batch: Batch, split: str, group_key: str | None) -> pa.Table:
    """The identities of a batch's inputs, in the columns of the index table.

    Args:
        batch: With `index`, `keys`, and what else it has.
        split: The split's name.
        group_key: The metadata field that becomes the group.

    Returns:
        One row per input: ROW_SCHEMA's columns, then the metadata.

    Raises:
        ConfigError: If `index` or `keys` are missing, or the group key is not in the metadata.
    """
    if missing := [name for name in ("index", "keys") if name not in batch]:
        raise ConfigError(f"the batch has no {' and no '.join(missing)}; it has {', '.join(batch)}")
    metadata: Mapping[str, Any] = batch.get("metadata") or {}
    if group_key is not None and group_key not in metadata:
        raise ConfigError(
            f"the group key {group_key!r} is not in the batch's metadata, which has {', '.join(metadata) or 'nothing'}"
        )
    if clashing := sorted(RESERVED_COLUMNS.intersection(metadata)):
        raise ConfigError(f"metadata can't be named {', '.join(clashing)}: the index table has columns of that name")
    count = len(batch["index"])
    nothing = [None] * count
    reasons = batch.get("reasons", nothing)
    columns = {
        "split": [split] * count,
        "index": batch["index"].tolist(),
        "key": batch["keys"],
        "path": batch.get("paths", nothing),
        "offset": batch.get("offsets", nothing),
        "group": pc.cast(_array(metadata[group_key]), pa.string()) if group_key is not None else nothing,
        "target": _targets(batch, count),
        "status": [OK if reason is None else REJECTED for reason in reasons],
        "reason": reasons,
        "bytes": batch.get("bytes", nothing),
        "mtime_ns": batch.get("mtime_ns", nothing),
        "sha256": batch.get("sha256", nothing),
    }
    try:
        table = pa.table(columns, schema=ROW_SCHEMA)
        for name, values in metadata.items():
            table = table.append_column(name, _array(values))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise ConfigError(f"the batch's entries are not a plain value for each of its {count} rows: {error}") from error
    return table


def _array(values: Any) -> pa.Array:
    """Metadata as an arrow array; default collation makes tensors of numbers."""
    return pa.array(values.tolist() if isinstance(values, Tensor) else values)


def _targets(batch: Batch, count: int) -> list[int | None]:
    if "targets" not in batch:
        return [None] * count
    targets = torch.as_tensor(batch["targets"])
    if targets.is_floating_point() or targets.is_complex():
        raise ConfigError(f"the batch's targets are {targets.dtype}; a target is a class's number, an integer")
    return [None if target == UNKNOWN_TARGET else target for target in targets.tolist()]


def _stored(outputs: Any, count: int, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors to store, `embeddings` [n, D] and one entry per extra layer, on the device they are on.

    Those of whole numbers keep their type, as another one may not hold them.
    """
    outputs = outputs if isinstance(outputs, Mapping) else {EMBEDDINGS: outputs}
    if EMBEDDINGS not in outputs:
        raise ConfigError(f"the outputs have no {EMBEDDINGS!r}, but {', '.join(outputs)}; give a test_connector")
    if reserved := sorted({INDEX, TARGETS}.intersection(outputs)):
        raise ConfigError(f"an output can't be named {', '.join(reserved)}: shards have tensors of that name")
    for name, tensor in outputs.items():
        if len(tensor) != count:
            raise ConfigError(f"the output {name!r} has {len(tensor)} rows for {count} inputs")
        if 0 in tensor.shape[1:]:
            raise ConfigError(f"the output {name!r} has shape {list(tensor.shape)}: there is nothing in its rows")
    if outputs[EMBEDDINGS].ndim < 2:
        raise ConfigError(f"the embeddings have shape {list(outputs[EMBEDDINGS].shape)}; give [n, D]")
    return {
        name: tensor.detach().to(dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype)
        for name, tensor in outputs.items()
    }
