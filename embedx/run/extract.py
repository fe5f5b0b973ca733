"""The composition root: the only place where sources, backbone, loop, callbacks and store are put together."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from rich.console import Console
from torch import nn

from embedx.callbacks.progress import ProgressBar
from embedx.callbacks.rejected import RejectedInputs
from embedx.callbacks.throughput import Throughput
from embedx.callbacks.writer import EmbeddingsWriter
from embedx.config import ExtractConfig
from embedx.data.decoding.batch_rows import NoDecoder
from embedx.data.loading.loaders import SplitLoader
from embedx.data.plan import Plan, SplitPlan
from embedx.engine.callback import Callback
from embedx.engine.connectors import DataConnector
from embedx.engine.loop import run_test
from embedx.errors import ConfigError, DeviceMemoryError, StoreMismatchError
from embedx.heartbeat import SILENT, Heartbeat
from embedx.models.backbones import BackboneSpec
from embedx.models.device import has_bf16, resolve_device, resolve_precision
from embedx.models.runtimes import choice as runtimes
from embedx.models.runtimes.base import LARGEST_BATCH, Runtime
from embedx.models.runtimes.eager import EagerRuntime
from embedx.run.inputs import list_inputs
from embedx.run.job import (
    check_decoder,
    decoder_for,
    describe_spec,
    environment_of,
    loading,
    placing,
    recipe_of,
    required,
    split_loader,
    use_machine,
    workers_of,
)
from embedx.run.summary import Summary
from embedx.run.update import Layout, compare, lay_out
from embedx.store.format.layout import MANIFEST, Unit
from embedx.store.format.manifest import Manifest, existing_store
from embedx.store.writing.session import StoreSession
from embedx.system.machine import allow_files, keep_large_blocks
from embedx.values import Precision, rows_per_unit, size_text

_INDEX_BYTES = 8
_FILES = 48
_FILES_PER_WORKER = 12
"""A batch's tensors are a file each while it is under way, of which there are four per worker."""

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Job:
    """A run, fully determined; nothing of it has been written."""

    config: ExtractConfig
    plan: Plan
    spec: BackboneSpec
    device: torch.device
    precision: Precision
    batch_size: int
    rows_per_unit: int
    manifest: Manifest
    runtimes: tuple[str, ...]
    """Those to be tried: the first is the recipe's."""

    def describe(self) -> dict[str, Any]:
        """What would be done, as plain JSON values."""
        row_bytes = _row_bytes(self.spec, self.config)
        return {
            "backbone": self.spec.name,
            "weights": self.spec.weights.to_json(),
            "preprocessing": self.manifest.recipe["preprocessing"],
            "tensors": {name: list(shape) for name, shape in self.spec.shapes.items()},
            "device": str(self.device),
            "precision": self.precision,
            "runtime": self.runtimes[0],
            "dtype": self.config.dtype,
            "batch_size": self.batch_size,
            "rows_per_unit": self.rows_per_unit,
            "group_key": self.plan.group_key,
            "out": str(self.config.out),
            "splits": {
                name: {
                    "inputs": len(split),
                    "groups": [{"group": group, "inputs": inputs} for group, inputs in split.inputs_per_group().items()]
                    if self.plan.group_key
                    else [],
                    "units": len(split.unit_rows(self.rows_per_unit)),
                    "input_bytes": sum(size or 0 for size in split.table["size"].to_pylist()),
                    "output_bytes": len(split) * row_bytes,
                }
                for name, split in self.plan.splits.items()
            },
        }


def prepare(
    config: ExtractConfig, *, download: bool = True, plan: Plan | None = None, heartbeat: Heartbeat = SILENT
) -> Job:
    """Determines all of a run, writing nothing.

    Args:
        config: The settings.
        download: Whether weights may be fetched.
        plan: The inputs, where they have been listed already.
        heartbeat: Told what is being done.

    Raises:
        ConfigError: Naming every fault that was found.
    """
    faults = config.faults()

    def attempt(step: Callable[[], T]) -> T | None:
        try:
            return step()
        except ConfigError as error:
            faults.extend(error.faults)
            return None

    store = attempt(lambda: existing_store(config.out))
    device = attempt(lambda: resolve_device(config.device))
    precision = attempt(lambda: resolve_precision(config.precision, device)) if device is not None else None
    if device is not None:
        attempt(lambda: check_decoder(config, device))
    heartbeat.say("listing the inputs")
    plan = plan or attempt(lambda: list_inputs(config))
    heartbeat.say("preparing the backbone")
    # Last, as it may have to fetch weights, which is not worth it for a run that can't be.
    spec = attempt(lambda: describe_spec(config, plan, download=download and not faults))
    ConfigError.check(faults)
    return _job(config, store, required(plan), required(spec), required(device), required(precision))


def extract(config: ExtractConfig, heartbeat: Heartbeat = SILENT, plan: Plan | None = None) -> Summary:
    """Runs a backbone over images and stores the embeddings; finishes what an earlier run left.

    Args:
        config: The settings.
        heartbeat: Where progress and notices go.
        plan: The inputs, where they have been listed already.

    Returns:
        What was done. Whether too many inputs were rejected is for the caller to judge.

    Raises:
        ConfigError: If it can't be done as asked; nothing is written.
        StoreLockedError: If another run holds the store.
        WriterError: If what was computed can't be written.
        DeviceMemoryError: If the forward pass does not fit into the device's memory.
        InputError: At the first rejected input, where that was asked for.
    """
    started = time.perf_counter()
    console = heartbeat.console
    job = prepare(config, plan=plan, heartbeat=heartbeat)
    _notices(job, console)
    heartbeat.say("looking through the store")
    session = StoreSession.begin(config.out, job.manifest, mode="overwrite" if config.overwrite else "resume")
    try:
        update = _update(job, session, console)
        loaders = _loaders(job, session, update)
        for name, then, now in session.changes if loaders else ():
            console.print(f"the store was begun with {name} {then}, and goes on with {now}", markup=False)
        up_to_date = session.is_finished and not loaders
        if not up_to_date:
            _run(job, session, loaders, heartbeat)
    except ConfigError:
        session.discard()
        raise
    finally:
        session.close()
    manifest = session.manifest
    seconds = time.perf_counter() - started
    changes = update.counts if update is not None else None
    means = _means(job, manifest) if loaders else {}
    return Summary(config.out / MANIFEST, manifest.totals, up_to_date, changes, seconds, manifest.timings, means)


def _means(job: Job, manifest: Manifest) -> dict[str, str | int]:
    means: dict[str, str | int] = {"device": str(job.device), "runtime": manifest.recipe["runtime"]}
    if job.device.type == "cpu":
        means["threads"] = torch.get_num_threads()
    return {**means, "workers": workers_of(job.config), "batch_size": job.batch_size}


def _update(job: Job, session: StoreSession, console: Console) -> Layout | None:
    """Where the plan does not tell what is missing, finds out; None where there is nothing to be updated.

    Raises:
        StoreMismatchError: If the inputs have changed, and `--update` is not given.
    """
    config = job.config
    retry = config.retry_rejected and session.has_rejected
    if not session.needs_comparison and not retry:
        return None

    def sha256_of(split: SplitPlan, rows: Sequence[int]) -> list[str | None]:
        if rows:
            inputs = "1 input" if len(rows) == 1 else f"{len(rows):,} inputs"
            console.print(f"{split.name}: reading {inputs} to see what has changed", markup=False)
            loader = split_loader(split, [rows], NoDecoder(), config, job.batch_size, job.device)
            return [digest for batch in loader for digest in batch["sha256"]]
        return []

    comparison = compare(
        job.plan,
        session.whole_units().values(),
        sha256_of,
        names_differ=not session.inputs_are_the_same,
        retry_rejected=config.retry_rejected,
    )
    if comparison.inputs_differ and not config.update:
        raise StoreMismatchError(
            f"the inputs are not those of the store {config.out}: {comparison.describe()}; bring it up to date with "
            "--update, replace it with --overwrite, or choose another folder"
        )
    out_of_place = session.was_updated and comparison.counts["pending"]
    if not (comparison.inputs_differ or comparison.counts["retried"] or out_of_place):
        session.resume()
        return None
    layout = lay_out(job.plan, comparison, job.rows_per_unit)
    session.update(layout.counts, layout.units, layout.linked, layout.staying)
    return layout


def _run(job: Job, session: StoreSession, loaders: dict[str, SplitLoader], heartbeat: Heartbeat) -> None:
    _warn_of_space(job, session, loaders, heartbeat.console)
    allow_files(_FILES + _FILES_PER_WORKER * workers_of(job.config))
    decoder = decoder_for(job.spec, job.config)
    place = placing(decoder, job.config, job.batch_size, job.device)
    model: nn.Module = nn.Identity()  # for no batches at all, where rows only move
    if loaders:
        heartbeat.say("loading the backbone")
        next(iter(loaders.values())).start()  # its workers decode while the model is built
        if job.device.type == "cpu":
            keep_large_blocks()
        model = _runtime(job, session, heartbeat.console)
        if job.config.checkpoint is not None and (match := job.spec.architecture.match) is not None:
            heartbeat.console.print(f"{job.config.checkpoint}: {match}", markup=False, soft_wrap=True)
    callbacks: list[Callback] = [
        ProgressBar(heartbeat, {split: loader.inputs for split, loader in loaders.items()}),
        RejectedInputs(job.config.on_error),
        Throughput(),
        EmbeddingsWriter(  # last, as it stores the others' metrics
            job.config.out,
            dataloader_idx_map=dict(enumerate(loaders)),
            group_key=job.config.group_key,
            dtype=getattr(torch, job.config.dtype),
            session=session,
        ),
    ]
    try:
        run_test(model, loaders, callbacks, DataConnector({"images": decoder.entry}), place)
    except torch.OutOfMemoryError as error:  # not of the forward pass, which tells of it by itself
        raise DeviceMemoryError(
            f"{job.device.type.upper()} is out of memory with --batch-size {job.batch_size}, where batches are brought "
            "there and results back; give a smaller one, or --decoder cpu"
        ) from error


def _runtime(job: Job, session: StoreSession, console: Console) -> Runtime:
    """The backbone, made ready; if not by the recipe's runtime, the recipe is stated anew."""
    images = decoder_for(job.spec, job.config).empty(job.batch_size).zero_()
    model = runtimes.build(
        job.runtimes, job.spec.load, job.device, job.precision, images, lambda text: console.print(text, markup=False)
    )
    if model.name != job.runtimes[0]:
        session.set_recipe({**session.manifest.recipe, "runtime": model.name})
    return model


def _warn_of_space(job: Job, session: StoreSession, loaders: dict[str, SplitLoader], console: Console) -> None:
    """Tells if the disk will be full before all is written; compression or a quota may make it otherwise."""
    needed = sum(loader.inputs for loader in loaders.values()) * _row_bytes(job.spec, job.config)
    free = shutil.disk_usage(session.root).free
    if needed > free:
        text = f"the embeddings to be written take about {size_text(needed)}, and {size_text(free)} are free"
        console.print(f"{text} for {job.config.out}", style="bold yellow", markup=False, soft_wrap=True)


def _loaders(job: Job, session: StoreSession, update: Layout | None) -> dict[str, SplitLoader]:
    """A loader over what has to be computed, for every split in which there is such."""
    missing: dict[str, list[Sequence[int]]] = {}
    plan = job.plan if update is None else update.plan
    for name, split in plan.splits.items():
        if update is None:
            units = enumerate(split.unit_rows(job.rows_per_unit))
            missing[name] = [rows for number, rows in units if not session.is_committed(Unit(name, number))]
        else:  # batches of what many units lack a little of, as a row's numbers do not depend on its neighbours
            numbers = split.index(update.computed[name]) // job.rows_per_unit
            pairs = zip(update.computed[name], numbers.tolist(), strict=True)
            missing[name] = [[row for row, number in pairs if not session.is_committed(Unit(name, number))]]
    decoder = loading(decoder_for(job.spec, job.config), job.config)
    return {
        name: split_loader(plan.splits[name], runs, decoder, job.config, job.batch_size, job.device)
        for name, runs in missing.items()
        if any(runs)
    }


def _job(
    config: ExtractConfig,
    store: Manifest | None,
    plan: Plan,
    spec: BackboneSpec,
    device: torch.device,
    precision: Precision,
) -> Job:
    use_machine(config, device)
    begun = store.recipe if store is not None and not config.overwrite else {}
    batch_size = begun.get("batch_size", "auto") if config.batch_size == "auto" else config.batch_size
    if batch_size == "auto":
        images = decoder_for(spec, config).empty(LARGEST_BATCH[device.type]).zero_()
        batch_size = EagerRuntime(spec.load(), device, precision).fitting_batch_size(images)
    wanted = begun.get("runtime", "auto") if config.runtime == "auto" else config.runtime
    names = runtimes.candidates(wanted, device, spec.written_bytes, sum(map(len, plan.splits.values())))
    recipe = recipe_of(config, spec, device, precision, batch_size, names[0])
    unit = rows_per_unit(config.shard_size, _row_bytes(spec, config), batch_size)
    environment = environment_of(device, (*spec.architecture.libraries, *runtimes.libraries(names[0])))
    manifest = Manifest(recipe.to_json(), plan.to_json(unit), environment, config.to_json())
    return Job(config, plan, spec, device, precision, batch_size, unit, manifest, names)


def _row_bytes(spec: BackboneSpec, config: ExtractConfig) -> int:
    item_bytes = getattr(torch, config.dtype).itemsize
    return int(sum(math.prod(shape) for shape in spec.shapes.values()) * item_bytes + _INDEX_BYTES)


def _notices(job: Job, console: Console) -> None:
    if not job.config.data:
        total = sum(len(split) for split in job.plan.splits.values())
        console.print(f"no --data given: using the bundled sample of {total} images", style="yellow")
    if job.config.batch_size == "auto":
        console.print(f"--batch-size auto: {job.batch_size}", markup=False)
    if job.precision == "bf16" and not has_bf16(job.device):
        console.print(f"this {job.device.type.upper()} has no bf16 of its own: fp32 will be faster", style="yellow")
    if job.spec.weights.name == "random":
        console.print(
            f"random weights (seed {job.spec.weights.seed}): these embeddings mean nothing",
            style="bold yellow",
        )
