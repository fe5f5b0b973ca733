"""The main job: prepare the run, take hold of the store, embed what it lacks, declare it complete."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from functools import cache, partial
from itertools import starmap

import pyarrow.compute as pc
import torch
from rich.console import Console

from embedx.config import ExtractConfig
from embedx.data.decoding.batch_rows import NoDecoder
from embedx.data.loading.loaders import SplitLoader
from embedx.data.plan import Plan, SplitPlan
from embedx.errors import ConfigError, InputError, StoreError, StoreMismatchError
from embedx.heartbeat import SILENT, Heartbeat
from embedx.models.device import has_bf16
from embedx.run.changes import Changes, check_gone, compare
from embedx.run.compute import Compute, Work, compute
from embedx.run.job import Job
from embedx.run.kept_splits import check_complete
from embedx.run.prepare import prepare
from embedx.run.retries import is_tried_again
from embedx.run.same_bits import check_hardware, environments_of, tell_hardware
from embedx.run.summary import Summary
from embedx.run.take_up import take_up
from embedx.run.torch_settings import torch_settings_kept
from embedx.run.update import Layout, lay_out
from embedx.store.format.contents import StoredRecipe
from embedx.store.format.layout import MANIFEST, Unit, alike
from embedx.store.writing.replacement import is_replaceable
from embedx.store.writing.session import StoreSession
from embedx.store.writing.session_choice import Mode


@torch_settings_kept()
def extract(
    config: ExtractConfig,
    heartbeat: Heartbeat = SILENT,
    plan: Plan | None = None,
    members: Compute | None = None,
) -> Summary:
    """Runs a backbone over images and stores the embeddings; finishes what an earlier run left.

    Args:
        config: The settings of the run.
        heartbeat: The receiver of progress and notices.
        plan: The inputs, if they have been listed already.
        members: The function that has other processes compute and finishes the store; None computes in this one.

    Returns:
        The summary of the run. The caller judges whether too many inputs were rejected.

    Raises:
        ConfigError: If the settings can't be met, or do not fit the store; units that were committed stay.
        StoreLockedError: If another run holds the store.
        StoreError: If another run has changed it just now, or it is damaged beyond this run's reach.
        WriterError: If the embeddings can't be written.
        DeviceMemoryError: If the forward pass does not fit into the device's memory.
        InputError: At the first rejected input, with `--on-error fail`.
        TooManyUnavailableError: If the machine or the network does not give more inputs than `--max-unavailable`.
    """
    started = time.perf_counter()
    console = heartbeat.console
    job = prepare(config, plan=plan, heartbeat=heartbeat)
    _notices(job, console)
    for line in job.decisions():
        heartbeat.detail(line)
    heartbeat.say("looking through the store")
    mode: Mode = "overwrite" if config.overwrite else "resume"
    session = StoreSession.begin(
        config.out, job.manifest, mode, verify_kept=config.verify_kept, is_shared=members is not None
    )
    kept = tuple(name for name, split in job.plan.splits.items() if split.kept is not None)
    try:
        if kept and job.store is not None and not session.goes_on_with(job.store):
            raise StoreError(f"another run has changed {config.out} meanwhile; run the same command again")
        update = _update(job, session, console)
        session.writer = session.writer._replace(
            environment=job.unit_environment, groups=_alike_groups(job.plan if update is None else update.plan)
        )
        if config.same_hardware and members is None:
            check_hardware(environments_of(session), job.unit_environment)
        work = _work(job, session, update, console)
        for name, then, now in session.changes if work.inputs else ():
            console.print(f"the store was begun with {name} {then}, and goes on with {now}", markup=False)
        _tell_damage(session, heartbeat)
        up_to_date = session.is_finished and not work.inputs
        if session.goes_on and not up_to_date:
            console.print(f"goes on: {work.there:,} of {work.total:,} rows are there", markup=False)
        if not up_to_date:
            (members or compute)(job, session, work, heartbeat)
            tell_hardware(session, console)
    except ConfigError:
        _tell_damage(session, heartbeat)  # it may be the cause
        session.discard()
        raise
    finally:
        session.close()
    manifest = session.manifest
    seconds = time.perf_counter() - started
    changes = update.counts if update is not None else None
    ran_on = _ran_on(job, manifest.recipe) if work.inputs else {}
    return Summary(config.out / MANIFEST, manifest.totals, up_to_date, changes, seconds, manifest.timings, ran_on, kept)


def _alike_groups(plan: Plan) -> dict[str, list[str]]:
    """Returns the groups of each split that share a folder's name but for its case, in the order of the plan."""
    if plan.group_key is None:
        return {}
    found = {name: alike(pc.unique(split.table["group"]).to_pylist()) for name, split in plan.splits.items()}
    return {name: groups for name, groups in found.items() if groups}


def _tell_damage(session: StoreSession, heartbeat: Heartbeat) -> None:
    for damage in session.checks.told:
        heartbeat.tell(damage)


def _ran_on(job: Job, recipe: StoredRecipe) -> dict[str, str | int]:
    threads = {"threads": torch.get_num_threads()} if job.device.type == "cpu" else {}
    settled = {"precision": recipe.precision or job.precision, "runtime": recipe.runtime or job.runtimes[0]}
    return {
        "device": str(job.device),
        **settled,
        "decoder": job.config.decoder,
        **threads,
        "workers": job.workers,
        "batch_size": job.batch_size,
    }


def _update(job: Job, session: StoreSession, console: Console) -> Layout | None:
    """Compares the plan with the store's rows and begins an update; None if the store needs none."""
    config = job.config
    can_replace = cache(partial(is_replaceable, session.out))  # asked only where it matters, as it may move the folder

    def retries(status: str, reason: str) -> bool:
        return config.retry_rejected or (is_tried_again(status, reason) and can_replace())

    if not session.needs_comparison and not any(starmap(retries, session.checks.failures(session.out))):
        return None

    def sha256_of(split: SplitPlan, rows: Sequence[int]) -> list[str | None]:
        if not rows:
            return []
        inputs = "1 input" if len(rows) == 1 else f"{len(rows):,} inputs"
        console.print(f"{split.name}: reading {inputs} to see what has changed", markup=False)
        return _digests(job.loader(split, [rows], NoDecoder()), all_are_needed=not config.update)

    def compared() -> Changes:
        return compare(
            job.plan,
            session.checks.whole_tables(session.out),
            sha256_of,
            classes=session.classes_before,
            names_differ=None if session.inputs_are_the_same is None else not session.inputs_are_the_same,
            retries=retries,
        )

    changes = compared()
    if changes.inputs_differ and not config.update:
        raise StoreMismatchError(
            f"the inputs are not those of the store {config.out}: {changes.describe()}; bring it up to date with "
            "--update, replace it with --overwrite, or choose another folder"
        )
    moved = changes.counts["moved"]
    out_of_place = session.was_updated and changes.counts["pending"]
    if not (changes.inputs_differ or changes.counts["retried"] or out_of_place or (moved and config.update)):
        if moved:
            console.print(f"{changes.describe_moved()}; --update brings the new paths in", markup=False, soft_wrap=True)
        session.resume(is_elsewhere=moved > 0)
        return None
    check_gone(changes, config.max_gone)
    layout = lay_out(changes, job.rows_per_unit)
    while session.find_damaged(layout.linked, layout.staying.values()):
        layout = lay_out(compared(), job.rows_per_unit)
    check_complete(job.plan, {name: len(rows) for name, rows in layout.computed.items()}, config.out)
    session.update(layout.counts, layout.units, layout.linked, layout.staying)
    return layout


def _digests(batches: SplitLoader, *, all_are_needed: bool) -> list[str | None]:
    """Returns the sha256 of each input; None for one that can't be read, unless all are needed."""
    found: list[str | None] = []
    for batch in batches:
        if all_are_needed and True in batch["unavailable"]:
            key, reason = (batch[name][batch["unavailable"].index(True)] for name in ("keys", "reasons"))
            raise InputError(f"{key} is unavailable: {reason}; whether it has changed can't be told: try again later")
        found += batch["sha256"]
    return found


def _work(job: Job, session: StoreSession, update: Layout | None, console: Console) -> Work:
    """Finds the rows to be computed; hands the session those of journals."""
    plan = job.plan if update is None else update.plan
    again = job.config.retry_rejected and session.root == session.out  # beside it, a run has tried them again already
    missing = take_up(session, plan, _missing(job, session, plan, update), console, retry_rejected=again)
    check_complete(plan, Counter(unit.split for unit, rows in missing.items() for _ in rows), job.config.out)
    return Work(plan, missing, {} if update is None else update.retried, is_update=update is not None)


def _missing(job: Job, session: StoreSession, plan: Plan, update: Layout | None) -> dict[Unit, Sequence[int]]:
    """Returns the inputs to be computed, as rows of the plan, by their unit.

    In a store that was updated an input's place in the plan does not tell its unit: what is missing is an update.
    """
    if update is None and session.was_updated:
        return {}
    missing: dict[Unit, Sequence[int]] = {}
    for name, split in plan.splits.items():
        units: dict[int, list[int]] = {}
        if update is not None:
            numbers = split.index(update.computed[name]) // job.rows_per_unit
            for row, number in zip(update.computed[name], numbers.tolist(), strict=True):
                units.setdefault(number, []).append(row)
        parts = enumerate(split.unit_rows(job.rows_per_unit)) if update is None else units.items()
        missing |= {Unit(name, number): rows for number, rows in parts}
    return {unit: rows for unit, rows in missing.items() if not session.is_committed(unit)}


def _notices(job: Job, console: Console) -> None:
    """Prints a notice for each choice that the user may not expect."""
    if not (job.config.data or job.config.drop_split):
        total = sum(len(split) for split in job.plan.splits.values())
        console.print(f"no --data given: using the bundled sample of {total} images", style="magenta")
    if job.config.batch_size == "auto" or (job.config.batch_size is None and job.device.type == "cuda"):
        console.print(f"--batch-size auto: {job.batch_size}", markup=False)
    if job.precision == "bf16" and not has_bf16(job.device):
        console.print(
            f"this {job.device.type.upper()} does not compute in bf16 itself: fp32 is faster", style="magenta"
        )
    if (weights := job.spec.architecture.weights).name == "random":
        console.print(f"random weights (seed {weights.seed}): these embeddings mean nothing", style="bold magenta")
