"""Some rows of a store, computed once more from the inputs and settings that it names, and compared with its own."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from rich.console import Console
from torch import Tensor, nn

from embedx.callbacks.progress import ProgressBar
from embedx.config import ExtractConfig
from embedx.data.plan import Plan, SplitPlan
from embedx.data.sources import find_reader
from embedx.data.sources.base import SourceOptions, as_path
from embedx.engine.callback import Callback
from embedx.engine.connectors import DataConnector
from embedx.engine.loop import run_test
from embedx.engine.state import Batch, Outputs, TrainerState
from embedx.errors import ConfigError, StoreMismatchError
from embedx.heartbeat import Heartbeat
from embedx.models.backbones import BackboneSpec, runs_code
from embedx.models.device import resolve_device
from embedx.models.runtimes import choice as runtimes
from embedx.models.runtimes.eager import EagerRuntime
from embedx.run.job import (
    decoder_for,
    describe_spec,
    environment_of,
    loading,
    placing,
    recipe_of,
    split_loader,
    use_machine,
)
from embedx.store.format.differences import difference_text, leaves_that_differ
from embedx.store.format.index import OK
from embedx.store.reading.reader import Store
from embedx.store.reading.stored_rows import StoredRows
from embedx.values import Precision

ALLOWED_OF_PRECISION = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "bf16": 5e-2}
ALLOWED_OF_DTYPE = {"float32": 0.0, "float16": 2e-3, "bfloat16": 2e-2}
"""By how much a row may differ, in parts of its largest number: the larger of the two is what counts.

One machine gives the same bits again; others round otherwise, having other kernels, another device or another torch.
Seen on CPUs, with and without AVX: 1e-6 in fp32; half precisions differ from fp32 by up to 2e-3 (fp16) and 2e-2 (bf16).
Of a stored type it is twice the distance of neighbouring numbers.

Not covered: torch resizes uint8 images otherwise on processors without AVX2, by one grey level, which was worth 2e-2.
"""

_COLUMNS = ("key", "path", "offset", "group", "target", "status", "shard", "row", "bytes", "mtime_ns", "sha256")


@dataclasses.dataclass(frozen=True)
class Recomputation:
    """What came of computing some rows once more."""

    seed: int
    """Of the choice of rows."""
    device: str
    rows: int
    """Rows that were computed and compared."""
    largest_difference: float | None
    """In parts of the row's largest number; None where what was computed is not finite."""
    allowed: float
    """As far as a row may differ so."""
    faults: list[str]
    """One sentence per row that is not what its input gives."""
    lost_inputs: list[str]
    """One sentence per row that can't be judged, as its input is gone, or has changed since."""


def recompute(
    path: str | Path,
    count: int,
    *,
    seed: int | None = None,
    device: str | None = None,
    trust: bool = False,
    tolerance: float | None = None,
    console: Console | None = None,
) -> Recomputation:
    """Chooses rows of a store at random, computes them from their inputs, and compares all their tensors.

    Args:
        path: The store.
        count: How many rows; all, if it has fewer.
        seed: Of the choice; None: another one each time.
        device: Where; None: that of the recipe if it is there.
        trust: Whether a backbone that is code, or a program, may be run, though it is the store that names it.
        tolerance: How far a row may differ, in parts of its largest number; None: by precision and stored type.
        console: Where progress and notices go; None for silence.

    Raises:
        StoreError: If it is not a store, or damaged.
        StoreMismatchError: If the backbone, its weights or the preprocessing are not those of the recipe any more.
        ConfigError: If the store does not say how it was made, its backbone can't be had, or is not trusted.
    """
    console = console or Console(quiet=True)
    store = Store.open(Path(path).absolute())
    config = _config(store, device, trust=trust, console=console)
    use_machine(config, resolve_device(config.device))
    seed = random.randrange(2**32) if seed is None else seed
    chosen = _choose(store, count, seed)
    total = sum(len(rows) for rows in chosen.values())
    console.print(f"rows to recompute: {total}, chosen by --seed {seed}, on {config.device}", soft_wrap=True)
    checker = RowChecker(store, chosen, _allowed(store.recipe) if tolerance is None else tolerance)
    with _working_directory(store, console):
        plans = dict(checker.plans(SourceOptions.of(config)))
        if plans:
            _run(store, config, plans, checker, console)
    return Recomputation(
        seed,
        config.device,
        checker.compared,
        checker.largest if math.isfinite(checker.largest) else None,
        checker.allowed,
        checker.faults,
        checker.lost_inputs,
    )


class RowChecker(Callback):
    """Compares what is computed with what a store holds.

    Args:
        store: The store.
        chosen: Per split the rows of its index tables, as they will come in the batches.
        allowed: How far a row may differ, in parts of its largest number.
    """

    def __init__(self, store: Store, chosen: dict[str, pa.Table], allowed: float) -> None:
        super().__init__()
        self.stored = StoredRows(store.path, store.units.values())
        self.chosen = chosen
        self.allowed = allowed
        self.compared = 0
        self.largest = 0.0
        self.faults: list[str] = []
        self.lost_inputs: list[str] = []

    def plans(self, options: SourceOptions) -> Iterator[tuple[str, SplitPlan]]:
        """The chosen rows as inputs, per split, as far as there is something that reads them."""
        for split, rows in self.chosen.items():
            try:
                yield split, _plan(split, rows, options)
            except ConfigError as error:
                for key in rows["key"].to_pylist():
                    self.lost_inputs.append(f"{_name(split, key)}: its input can't be read any more ({error})")

    def on_test_batch_end(
        self,
        trainer_state: TrainerState,
        model: nn.Module,
        outputs: Outputs,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Sorts out inputs that are not what they were, and compares the rows of the others."""
        split = list(trainer_state["test_dataloader"] or ())[dataloader_idx]
        rows = self.chosen[split].take(pa.array(batch["index"].numpy()))
        same = []
        for position, row in enumerate(rows.select(["key", "bytes", "sha256"]).to_pylist()):
            reason, size, sha256 = (batch[name][position] for name in ("reasons", "bytes", "sha256"))
            name = _name(split, row["key"])
            if sha256 is None:
                self.lost_inputs.append(f"{name}: its input can't be read any more ({reason})")
            elif sha256 != row["sha256"]:
                sizes = f"{row['bytes']} bytes then, {size} now" if size != row["bytes"] else f"{size} bytes"
                self.lost_inputs.append(f"{name}: its input has changed since ({sizes}, another sha256)")
            elif reason is not None:
                self.faults.append(f"{name}: its input, which is the same, would be rejected now: {reason}")
            else:
                same.append(position)
        if same:
            selected = torch.tensor(same)
            self._compare(split, rows.take(pa.array(same)), {name: value[selected] for name, value in outputs.items()})

    def _compare(self, split: str, rows: pa.Table, computed: dict[str, Tensor]) -> None:
        self.compared += len(rows)
        for name, values in computed.items():
            stored = self.stored.gather(name, rows)
            parts = _difference(values.cpu().to(stored.dtype), stored)
            self.largest = max(self.largest, parts.max().item())
            for position in (parts > self.allowed).nonzero().flatten().tolist():
                row = rows.slice(position, 1).to_pylist()[0]
                self.faults.append(
                    f"{_name(split, row['key'])}: {name!r}, row {row['row']} of {row['shard']}, is not what its input "
                    f"gives: a number differs by {parts[position]:.3g} of the row's largest (allowed {self.allowed:g})"
                )


def _run(
    store: Store, config: ExtractConfig, plans: dict[str, SplitPlan], checker: RowChecker, console: Console
) -> None:
    device = resolve_device(config.device)
    spec = describe_spec(config, Plan(plans, [], None), download=True)
    _check_recipe(store, config, spec, device)
    _check_tensors(checker.stored, spec)
    changes = leaves_that_differ(
        "",
        store.manifest.environment,
        environment_of(device, (*spec.architecture.libraries, *runtimes.libraries(store.recipe["runtime"]))),
    )
    if told := "; ".join(difference_text(*change) for change in changes):
        console.print(f"since the store was begun: {told}", soft_wrap=True)
    decoder, batch_size = decoder_for(spec, config), store.recipe["batch_size"]
    loaders = {
        split: split_loader(plan, [range(len(plan))], loading(decoder, config), config, batch_size, device)
        for split, plan in plans.items()
    }
    # If not by the runtime of then, which may not be installed here, by PyTorch's own: within what is allowed.
    names = tuple(dict.fromkeys((store.recipe["runtime"], EagerRuntime.name)))
    images = decoder.empty(batch_size).zero_()
    model = runtimes.build(
        names, spec.load, device, config.precision or "fp32", images, lambda text: console.print(text, markup=False)
    )
    with Heartbeat(console) as heartbeat:
        progress = ProgressBar(heartbeat, {split: loader.inputs for split, loader in loaders.items()})
        place = placing(decoder, config, batch_size, device)
        run_test(model, loaders, [progress, checker], DataConnector({"images": decoder.entry}), place)


def _config(store: Store, device: str | None, *, trust: bool, console: Console) -> ExtractConfig:
    """The settings that the store was made with, but for where it is now, and on which device."""
    if not store.manifest.settings:
        raise ConfigError(
            f"{store.path} does not say how it was made, as `embedx extract` states it: no row can be recomputed"
        )
    config, recipe = ExtractConfig.from_json(store.manifest.settings), store.recipe
    if runs_code(config.backbone) and not trust:
        raise ConfigError(
            f"the backbone of {store.path} is {config.backbone}, and to load it runs code that whoever wrote the store "
            "has chosen; if you trust them and it, add --trust"
        )
    found = _device(recipe["device"], device, console)
    # On the CPU there is no tf32: fp32 is closer to what is meant, and within what is allowed.
    precision: Precision = "fp32" if (recipe["precision"], found) == ("tf32", "cpu") else recipe["precision"]
    return dataclasses.replace(
        config,
        out=store.path,
        workers=None,
        threads=None,
        device=found,
        precision=precision,
        dtype=recipe["dtype"],
    )


def _device(of_recipe: str, wanted: str | None, console: Console) -> str:
    if wanted is not None:
        return str(resolve_device(wanted))
    try:
        return str(resolve_device(of_recipe))
    except ConfigError:
        found = str(resolve_device("auto"))
        console.print(f"the store was made on {of_recipe}, which is not there: {found} recomputes it", soft_wrap=True)
        return found


def _choose(store: Store, count: int, seed: int) -> dict[str, pa.Table]:
    """Random rows that have an embedding, per split, in the order of the store."""
    rows = {split: _embedded(store, split, ("status",)).num_rows for split in store.splits}
    total = sum(rows.values())
    picked = sorted(random.Random(seed).sample(range(total), min(count, total)))
    chosen: dict[str, pa.Table] = {}
    start = 0
    for split, of_split in rows.items():
        positions = [row - start for row in picked if start <= row < start + of_split]
        if positions:
            chosen[split] = _embedded(store, split, _COLUMNS).take(pa.array(positions))
        start += of_split
    return chosen


def _embedded(store: Store, split: str, columns: tuple[str, ...]) -> pa.Table:
    table = store.index(split, columns)
    return table.filter(pc.equal(table["status"], OK)) if table.num_columns else table


def _plan(split: str, rows: pa.Table, options: SourceOptions) -> SplitPlan:
    """The rows as a split's inputs, with what reads them.

    Raises:
        ConfigError: If what they are parts of can't be opened.
    """
    paths = [as_path(path) for path in rows["path"].to_pylist()]
    columns: dict[str, Any] = {"key": rows["key"], "path": pa.array(paths, pa.binary()), "offset": rows["offset"]}
    columns |= {"size": rows["bytes"]} | {name: rows[name] for name in ("mtime_ns", "group", "target")}
    reader = find_reader(os.fsdecode(paths[0]), rows["offset"][0].as_py(), options)
    return SplitPlan(split, pa.table(columns), reader)


def _check_recipe(store: Store, config: ExtractConfig, spec: BackboneSpec, device: torch.device) -> None:
    then = store.recipe
    now = recipe_of(config, spec, device, config.precision or "fp32", then["batch_size"], then["runtime"]).to_json()
    chosen = {name: then[name] for name in ("device", "precision")}  # by this run, which tells of it
    if differing := list(leaves_that_differ("recipe", then, now | chosen)):
        raise StoreMismatchError(
            f"{store.path} was made otherwise than it would be now:\n  "
            + "\n  ".join(difference_text(*leaf) for leaf in differing)
            + "\nno row was recomputed; bring the files and versions of then back"
        )


def _check_tensors(stored: StoredRows, spec: BackboneSpec) -> None:
    there = {name: stored.shape(name) for name in stored.names}
    if there != spec.shapes:
        raise StoreMismatchError(
            f"{stored.root} has tensors of the shapes {there}, and its recipe gives {spec.shapes}: no row was "
            "recomputed"
        )


def _allowed(recipe: dict[str, Any]) -> float:
    return max(ALLOWED_OF_PRECISION[recipe["precision"]], ALLOWED_OF_DTYPE[recipe["dtype"]])


def _difference(computed: Tensor, stored: Tensor) -> Tensor:
    """[N] float64: the largest difference of two numbers of a row, in parts of the stored row's largest."""
    a, b = (rows.reshape(len(rows), -1).double() for rows in (computed, stored))
    difference, largest = (a - b).abs().amax(dim=1), b.abs().amax(dim=1)
    parts = torch.where(difference == 0, 0.0, difference / largest)
    return parts.nan_to_num(nan=math.inf, posinf=math.inf)


@contextlib.contextmanager
def _working_directory(store: Store, console: Console) -> Iterator[None]:
    """The folder in which the settings' relative paths begin."""
    folder = store.manifest.settings["working_directory"]
    if not os.path.isdir(folder):
        console.print(f"{folder}, where the store was made, is gone: relative paths begin here", soft_wrap=True)
        yield
        return
    with contextlib.chdir(folder):
        yield


def _name(split: str, key: str) -> str:
    return f"split {split!r}, key {key!r}"
