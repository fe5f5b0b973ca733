"""Computes random rows of a store again, from the inputs and settings that it names, and compares them with its own."""

from __future__ import annotations

import contextlib
import itertools
import random

import pyarrow as pa
import pyarrow.compute as pc
import torch
from rich.console import Console

from embedx.callbacks.progress import ProgressBar
from embedx.data.plan import Plan
from embedx.data.sources.kinds import SourceOptions
from embedx.errors import ConfigError, StoreMismatchError
from embedx.heartbeat import SILENT, Heartbeat
from embedx.models.device import resolve_device
from embedx.paths import StorePath, store_path
from embedx.run.job import Job
from embedx.run.prepare import use_machine
from embedx.run.row_checker import Recomputation, RowChecker
from embedx.run.stored_job import check_recipe, stored_config, stored_job, working_directory
from embedx.store.format.differences import difference_text, leaves_that_differ
from embedx.store.format.index import INPUT_COLUMNS, OK
from embedx.store.reading.attempts import start_anew
from embedx.store.reading.reader import Store
from embedx.store.reading.stored_rows import StoredRows

TOLERANCE_BY_PRECISION = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "bf16": 5e-2}
TOLERANCE_BY_DTYPE = {"float32": 0.0, "float16": 2e-3, "bfloat16": 2e-2}
"""The largest allowed difference, relative to the row's largest absolute value; the larger of the two applies.

One machine gives the same bits again; another kernel, device or torch version rounds differently. Measured on CPUs,
with and without AVX: 1e-6 in fp32; half precisions differ from fp32 by up to 2e-3 (fp16) and 2e-2 (bf16). A stored
type's tolerance is twice the distance of neighbouring numbers.

Not covered: on processors without AVX2 torch resizes uint8 images differently, by one grey level, which made 2e-2.
"""

_COLUMNS = (*INPUT_COLUMNS, "status", "shard", "row")


def recompute(
    path: str | StorePath,
    count: int,
    *,
    seed: int | None = None,
    device: str | None = None,
    trust: bool = False,
    tolerance: float | None = None,
    console: Console = SILENT.console,
) -> Recomputation:
    """Chooses rows of a store at random, computes them from their inputs, and compares all their tensors.

    Args:
        path: The folder of the store.
        count: The number of rows; a store with fewer is compared as a whole.
        seed: The seed of the choice of rows; None takes another one each time.
        device: The device to compute on; None takes the recipe's if it is there.
        trust: Whether to run a backbone that is code, or a program, although the store names it.
        tolerance: The largest allowed difference, relative to the row's largest absolute value; None chooses it by
            precision and stored type.
        console: The console for progress and notices.

    Raises:
        StoreError: If the folder is not a store, or damaged.
        StoreMismatchError: If backbone, weights or preprocessing are no longer those of the recipe.
        ConfigError: If the store does not say how it was made, or its backbone can't be had or is not trusted.
    """

    def attempt() -> Recomputation:
        place = store_path(path) if isinstance(path, str) else path
        store = Store.open(place.absolute())
        return _recompute(store, count, seed, device, trust, tolerance, console)

    return start_anew(attempt)


def _recompute(
    store: Store,
    count: int,
    seed: int | None,
    device: str | None,
    trust: bool,
    tolerance: float | None,
    console: Console,
) -> Recomputation:
    config = stored_config(store, trust=trust)
    there = _device(config.device, device, console)
    use_machine(there, config.threads)
    seed = random.randrange(2**32) if seed is None else seed
    chosen = _choose(store, count, seed)
    total = sum(len(rows) for rows in chosen.values())
    console.print(f"rows to recompute: {total}, chosen by --seed {seed}, on {there}", soft_wrap=True)
    if tolerance is None:
        tolerance = max(TOLERANCE_BY_PRECISION[config.precision or "fp32"], TOLERANCE_BY_DTYPE[config.dtype])
    checker = RowChecker(store, chosen, Recomputation(seed, str(there), allowed=tolerance))
    with contextlib.chdir(working_directory(store, console)):
        if plans := dict(checker.plans(SourceOptions.of(config))):
            _run(store, stored_job(config, there, Plan(plans, [], None)), checker, console)
    return checker.found


def _run(store: Store, job: Job, checker: RowChecker, console: Console) -> None:
    """Runs the job if it makes the store's tensors, and tells which versions and hardware are others than then."""
    _check_outputs(store, job, checker.stored)
    changes = leaves_that_differ("", store.manifest.environment.to_json(), job.environment.to_json())
    if text := "; ".join(difference_text(*change) for change in changes):
        console.print(f"since the store was begun: {text}", soft_wrap=True)
    loaders = {name: job.loader(split, [range(len(split))]) for name, split in job.plan.splits.items()}
    inputs = {name: len(split) for name, split in job.plan.splits.items()}
    model = job.build_model(console)
    with Heartbeat(console) as heartbeat:
        job.run(model, loaders, [ProgressBar(heartbeat, inputs), checker])


def _device(of_recipe: str, wanted: str | None, console: Console) -> torch.device:
    """Returns the device to compute on: the one that is wanted, the recipe's type, or else any, with a notice."""
    if wanted is not None:
        return resolve_device(wanted)
    try:
        return resolve_device(of_recipe)
    except ConfigError:
        found = resolve_device("auto")
        text = f"the store was made on {of_recipe}, which this machine lacks: {found} recomputes it"
        console.print(text, soft_wrap=True)
        return found


def _choose(store: Store, count: int, seed: int) -> dict[str, pa.Table]:
    """Chooses random rows that have an embedding; returns their index rows per split, in the store's order."""
    rows = {split: _embedded(store, split, ("status",)).num_rows for split in store.splits}
    total = sum(rows.values())
    picked = sorted(random.Random(seed).sample(range(total), min(count, total)))
    chosen: dict[str, pa.Table] = {}
    for split, end in zip(rows, itertools.accumulate(rows.values()), strict=True):
        start = end - rows[split]
        if positions := [row - start for row in picked if start <= row < end]:
            chosen[split] = _embedded(store, split, _COLUMNS).take(pa.array(positions))
    return chosen


def _embedded(store: Store, split: str, columns: tuple[str, ...]) -> pa.Table:
    table = store.index(split, columns)
    return table.filter(pc.equal(table["status"], OK)) if table.num_columns else table


def _check_outputs(store: Store, job: Job, stored: StoredRows) -> None:
    """Checks that the job makes the store's tensors by its recipe, but for device and precision, which may differ."""
    check_recipe(store, job)
    shapes = job.spec.shapes
    if (found := {name: stored.shape(name) for name in stored.names}) != shapes:
        raise StoreMismatchError(
            f"{store.path} has tensors of the shapes {found}, but its recipe gives {shapes}: no row was recomputed"
        )
