"""Computes the missing rows of a store in this process, and finishes it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from rich.console import Console
from torch import nn

from embedx.callbacks.progress import ProgressBar
from embedx.callbacks.rejected import RejectedInputs
from embedx.callbacks.throughput import Throughput
from embedx.callbacks.writer import EmbeddingsWriter
from embedx.credentials import without_credentials
from embedx.data.loading.loaders import SplitLoader
from embedx.data.loading.peeked import PeekedLoader
from embedx.data.plan import Plan
from embedx.engine.callback import Callback
from embedx.heartbeat import Heartbeat
from embedx.run.job import Job
from embedx.run.same_bits import settle_threads, threads_of
from embedx.run.settle import settle
from embedx.store.format.layout import Unit
from embedx.store.writing.hold import StoreHold
from embedx.store.writing.session import StoreSession
from embedx.system.machine import allow_files, check_threads, keep_large_blocks, return_freed_blocks
from embedx.values import Allowed, size_text

_FILES = 48
"""The files that a run has open besides its batches."""
_FILES_PER_WORKER = 12
"""The files that a worker's four batches under way have open: one for each tensor."""

_THREADS = 8
"""The threads and processes that a run starts besides its workers."""
_THREADS_PER_WORKER = 4
"""A worker's process, and its threads."""


Compute: TypeAlias = "Callable[[Job, StoreSession, Work, Heartbeat], None]"
"""A way of computing the rows that a run has to compute, and of finishing its store."""


class Work(NamedTuple):
    """The rows that a run has to compute."""

    plan: Plan
    """The inputs, with their places in the store."""
    missing: Mapping[Unit, Sequence[int]]
    """The rows of the plan to be computed, by their unit; none of a unit that only has to be committed."""
    retried: Mapping[str, Collection[int]]
    """The rows of each split that an earlier run has tried and rejected."""
    is_update: bool
    """True if units may lack only a few rows."""

    @property
    def inputs(self) -> dict[str, int]:
        """The number of inputs to be computed of each split that has any."""
        counts: dict[str, int] = {}
        for unit, rows in self.missing.items():
            if len(rows):
                counts[unit.split] = counts.get(unit.split, 0) + len(rows)
        return counts

    @property
    def there(self) -> int:
        """The number of rows that need not be computed."""
        return self.total - sum(self.inputs.values())

    @property
    def total(self) -> int:
        """The number of rows of the plan."""
        return sum(map(len, self.plan.splits.values()))


def compute(job: Job, session: StoreSession, work: Work, heartbeat: Heartbeat) -> None:
    """Embeds the inputs in this process, and finishes the store."""
    loaders = _loaders(job, work)
    warn_of_space(job, session, work, heartbeat.console)
    allow_resources(job.workers)
    with contextlib.ExitStack() as until_it_is_built:
        for loader in loaders.values():
            until_it_is_built.callback(loader.close)
        job, model, throughput = _model(job, session, loaders, heartbeat)
        until_it_is_built.pop_all()
    say = partial(heartbeat.console.print, style="bold magenta", markup=False)
    rejected = rejected_inputs(job, say, heartbeat.detail if heartbeat.verbose else None)
    writer = writer_for(job, session, list(loaders), rejected)
    progress = ProgressBar(heartbeat, work.inputs, rejected.lost)
    try:
        run_over(job, model, loaders, [progress, rejected, throughput, writer])  # the last stores metrics
    finally:
        if writer.rows_saved is not None:  # after an error
            tell_kept(work, writer.rows_saved, heartbeat.console)


def run_over(
    job: Job, model: nn.Module, loaders: Mapping[str, SplitLoader | PeekedLoader], callbacks: Sequence[Callback]
) -> None:
    """Runs the model over the loaders' batches, and ends the loaders and frees their memory in any case."""
    try:
        job.run(model, loaders, callbacks)
    finally:
        for loader in loaders.values():
            loader.close()
        return_freed_blocks()


def allow_resources(workers: int) -> None:
    """Lets this process open as many files as a run needs, and checks that it may start as many threads."""
    allow_files(_FILES + _FILES_PER_WORKER * workers)
    check_threads(_THREADS + _THREADS_PER_WORKER * workers)


def rejected_inputs(
    job: Job, say: Callable[[str], None], detail: Callable[[str], None] | None = None
) -> RejectedInputs:
    """Makes the callback that counts the inputs without a row (see `RejectedInputs`)."""
    allowed = Allowed(job.config.max_unavailable, job.plan.inputs)
    return RejectedInputs(job.config.on_error, say, allowed, detail)


def writer_for(job: Job, session: StoreHold, splits: Sequence[str], rejected: RejectedInputs) -> EmbeddingsWriter:
    """Makes the callback that writes the rows of these splits' loaders."""
    return EmbeddingsWriter(
        job.config.out,
        dataloader_idx_map=dict(enumerate(splits)),
        group_key=job.config.group_key,
        dtype=getattr(torch, job.config.dtype),
        session=session,
        allow_nonfinite=job.config.allow_nonfinite,
        finite_check=dataclasses.replace(job.finite_check, tell=rejected.add_rows),
        batch_rows=job.rows_at_once,
    )


def tell_kept(work: Work, saved: int, console: Console) -> None:
    """Tells after an error how many rows are on disk: those that were there, and those that this run has saved."""
    console.print(f"{work.there + saved:,} of {work.total:,} rows are kept", markup=False)


def warn_of_space(job: Job, session: StoreSession, work: Work, console: Console) -> None:
    """Warns if the disk has less free space than the embeddings take; it may compress, or have a quota.

    Of a bucket's space nobody knows.
    """
    if not isinstance(session.root, Path):
        return
    needed = sum(work.inputs.values()) * job.row_bytes
    free = shutil.disk_usage(session.root).free
    if needed > free:
        text = f"the embeddings take about {size_text(needed)}, and {size_text(free)} are free for {job.config.out}"
        console.print(text, style="bold magenta", markup=False, soft_wrap=True)


def match_text(job: Job) -> str | None:
    """Returns a line that says how the weights of a checkpoint fit the backbone; None if there is nothing to say."""
    if job.config.checkpoint is None or (match := job.spec.architecture.match) is None:
        return None
    return f"{without_credentials(job.config.checkpoint)}: {match}"


def _model(
    job: Job, session: StoreSession, loaders: Mapping[str, PeekedLoader], heartbeat: Heartbeat
) -> tuple[Job, nn.Module, Throughput]:
    """Builds the model, settles what is open by the first batches, and states it in the recipe."""
    if not loaders:
        return job, nn.Identity(), Throughput()  # rows only move
    heartbeat.say("loading the backbone")
    first = next(iter(loaders.values()))
    first.start()  # its workers decode while the model is built
    if job.device.type == "cpu":
        keep_large_blocks()
    console = heartbeat.console
    job, runtime, model, seconds, measured = settle(job, first, sum(map(len, loaders.values())), console)
    recipe = session.manifest.recipe.replacing(runtime=runtime.name, precision=job.precision)
    if recipe != session.manifest.recipe:
        session.set_recipe(recipe, job.environment)
    if (settled := settle_threads(job, runtime, threads_of(session), console)) is not runtime:
        model = settled
    session.writer = session.writer._replace(environment=dataclasses.replace(job).unit_environment)
    if text := match_text(job):
        console.print(text, markup=False, soft_wrap=True)
    return job, model, Throughput(seconds, measured)


def _loaders(job: Job, work: Work) -> dict[str, PeekedLoader]:
    """Makes a loader for each split that has inputs to be computed."""
    runs: dict[str, list[Sequence[int]]] = {}
    for unit, rows in work.missing.items():
        if len(rows):
            runs.setdefault(unit.split, []).append(rows)
    if work.is_update:  # one run over all units, as many units may lack only a few rows
        runs = {name: [list(itertools.chain.from_iterable(units))] for name, units in runs.items()}
    splits = work.plan.splits
    return {
        name: PeekedLoader(job.loader(splits[name], units, again=work.retried.get(name, ())))
        for name, units in runs.items()
    }
