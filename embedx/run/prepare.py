"""Determines a run from its settings: checks them all, lists the inputs, describes the backbone."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch

from embedx.config import ExtractConfig
from embedx.data.decoding.batch_rows import batch_bytes
from embedx.data.decoding.features import features_shape
from embedx.data.decoding.nvjpeg import try_to_decode
from embedx.data.plan import Plan
from embedx.errors import ConfigError
from embedx.heartbeat import SILENT, Heartbeat
from embedx.models.backbones import BackboneSpec, describe_backbone
from embedx.models.backbones.none import describe_features
from embedx.models.device import has_bf16, is_here, resolve_device, resolve_precision
from embedx.models.runtimes import choice as runtimes
from embedx.models.runtimes.base import SMALL_BATCH, largest_batch
from embedx.models.runtimes.eager import EagerRuntime
from embedx.models.threads import ONE_AT_A_TIME
from embedx.names import NO_BACKBONE
from embedx.paths import is_url
from embedx.run.inputs import list_inputs
from embedx.run.job import Job
from embedx.run.kept_splits import with_kept_splits
from embedx.run.take_up import check_same_inputs
from embedx.store.format.contents import StoredRecipe
from embedx.store.format.layout import has_rows, store_root
from embedx.store.format.manifest import Manifest, existing_store
from embedx.store.writing.held_place import staged_store
from embedx.system.machine import cores, physical_memory
from embedx.values import size_text

DEFAULT_THREADS = torch.get_num_threads()
"""The number of threads that torch chooses by itself, read before any run sets another."""

_BATCH_ELSEWHERE = 256
"""The batch size on GPUs of other machines."""

_computing: dict[str, int] = {}
"""The id of the process in which torch was made to compute, which is another one in a process forked from it."""


def prepare(
    config: ExtractConfig, *, download: bool = True, plan: Plan | None = None, heartbeat: Heartbeat = SILENT
) -> Job:
    """Determines all of a run, writing nothing; lists the inputs, unless a plan of them is given.

    Raises:
        ConfigError: If the run can't be as asked; it names every fault that was found.
    """
    faults = config.faults()
    shape: tuple[int, ...] = (1,)
    store = None
    with _collected(faults):
        store = existing_store(config.out)
    with _collected(faults):
        device = resolve_device(config.device, is_elsewhere=config.engine != "local")
        with _collected(faults):
            precision = resolve_precision(config.precision, device)
        with _collected(faults):
            check_decoder(config, device)
    heartbeat.say("listing the inputs")
    with _collected(faults):
        named = plan or list_inputs(config, heartbeat)
        inputs = named if config.overwrite else _with_kept_splits(named, config, store)
        shape = input_shape(config, named if named.splits else inputs)
    heartbeat.say("preparing the backbone")
    with _collected(faults):  # last, as weights are not worth downloading for a run that can't be
        notice = partial(heartbeat.console.print, markup=False, soft_wrap=True)
        spec = describe_spec(config, shape, download=download and not faults, notice=notice)
    ConfigError.check(faults)  # a step that did not set its variable has left a fault

    use_machine(device, config.threads)
    root = staged_store(config.out.resolve()) if config.overwrite else store_root(config.out)  # where this run goes on
    begun_store = None if root is None else existing_store(root)
    begun = StoredRecipe() if begun_store is None else begun_store.recipe
    largest = largest_batch(device, sum(map(len, inputs.splits.values())))
    job = Job(config, inputs, spec, device, precision, largest, (EagerRuntime.name,), store=store)
    job = _with_choices(job, begun, is_open=root is None or not has_rows(root))
    wanted = default_batch_size(device) if config.batch_size is None else config.batch_size
    batch_size = begun.batch_size if wanted == "auto" else wanted
    if batch_size is not None:
        job = dataclasses.replace(job, batch_size=batch_size)
        check_memory(job)
        return job
    if not is_here(device):
        raise ConfigError(
            "--batch-size auto tries sizes on a GPU, and this machine has none; give a number, such as 256"
        )
    images = job.decoder.empty(job.batch_size).zero_()
    with ONE_AT_A_TIME:
        runtime = EagerRuntime(spec.load(), device, precision)
    fitting = runtime.fitting_batch_size(images)
    return dataclasses.replace(job, batch_size=fitting)


def _with_kept_splits(named: Plan, config: ExtractConfig, store: Manifest | None) -> Plan:
    """Adds the splits that a store has and the run does not name; a store without a row has none."""
    if store is not None and has_rows(config.out):
        if not config.update:
            check_same_inputs(named, config.out, store)
        return with_kept_splits(named, config.out, store, config.drop_split)
    ConfigError.check([f"--drop-split {name}: {config.out} has no splits yet" for name in config.drop_split])
    return named


def default_batch_size(device: torch.device) -> int | Literal["auto"]:
    """Returns the batch size where none is given; a GPU of another machine can't be asked for its memory."""
    if device.type == "cpu":
        return SMALL_BATCH
    return "auto" if is_here(device) else _BATCH_ELSEWHERE


def _with_choices(job: Job, begun: StoredRecipe, *, is_open: bool) -> Job:
    """Takes the runtime and precision that are asked for, or where they are `auto`, those of the store.

    Of a store without rows they are open: the run settles them by its first batches.
    """
    config, spec = job.config, job.spec
    takes_any = spec.preprocessing is not None and not spec.architecture.is_fixed
    if config.runtime != "auto":
        job = dataclasses.replace(job, runtimes=(config.runtime,))
    elif begun.runtime is not None and not is_open:
        job = dataclasses.replace(job, runtimes=(begun.runtime,))
    elif takes_any:
        job = dataclasses.replace(job, rivals=runtimes.rivals(job.device))
    if config.precision == "auto":
        if begun.precision is not None and not is_open:
            job = dataclasses.replace(job, precision=begun.precision)
        else:
            job = dataclasses.replace(job, may_take_bf16=takes_any and has_bf16(job.device))
    return job


def check_memory(job: Job) -> None:
    """Checks that the machine has the memory for one batch of inputs.

    Raises:
        ConfigError: If it has not.
    """
    if (size := batch_bytes(job.decoder, job.batch_size)) > (memory := physical_memory()):
        raise ConfigError(
            f"--batch-size {job.batch_size}: the inputs of a batch take {size_text(size)}, and this machine has "
            f"{size_text(memory)} of memory; give a smaller one"
        )


def input_shape(config: ExtractConfig, plan: Plan) -> tuple[int, ...]:
    """Returns the shape of one input where the inputs are features, and () where they are images."""
    return features_shape(plan) if config.backbone == NO_BACKBONE else ()


def describe_spec(
    config: ExtractConfig, shape: tuple[int, ...], *, download: bool = True, notice: Callable[[str], None]
) -> BackboneSpec:
    """Describes the backbone, or with `--backbone none` what is stored of features of this shape.

    Args:
        config: The settings of the run.
        shape: The shape of one input where the inputs are features.
        download: Whether weights that are in no cache may be fetched.
        notice: The function that is told what is fetched from the checkpoint's URL.
    """
    if config.checkpoint is not None and is_url(config.checkpoint):
        from embedx.system.downloads import fetch

        path = fetch(config.checkpoint, notice, download=download)
        config = dataclasses.replace(config, checkpoint=str(path))
    if config.backbone == NO_BACKBONE:
        return describe_features(config, shape)
    return describe_backbone(config, download=download)


def check_decoder(config: ExtractConfig, device: torch.device) -> None:
    """Checks that images can be decoded where `--decoder` says."""
    if config.decoder == "cpu":
        return
    if config.backbone == NO_BACKBONE:
        raise ConfigError("--decoder cuda is for images, and --backbone none takes features; leave it out")
    if device.type != "cuda":
        raise ConfigError(f"--decoder cuda decodes where the model runs, and that is the {device}; give --decoder cpu")
    if is_here(device):
        try_to_decode(device)


def check_not_forked() -> None:
    """Checks that this process is not forked from one that has computed, whose threads are not there in it.

    Raises:
        ConfigError: If it is: the first operation on several threads would wait for ever, and CUDA fails.
    """
    if _computing.get("in", os.getpid()) != os.getpid():
        raise ConfigError(
            "this process was forked from one in which embedx has computed, and torch can't compute in both; start it "
            'by multiprocessing.get_context("spawn"), and call embedx (or make its Embedder) in there'
        )


def use_machine(device: torch.device, threads: int | None) -> None:
    """Makes torch compute on this device, with so many threads; None takes its own number, at most one per core.

    Raises:
        ConfigError: If this process is forked from one that has computed.
    """
    check_not_forked()
    _computing["in"] = os.getpid()
    if device.type == "cuda" and is_here(device):
        torch.cuda.set_device(device)
    threads = threads or min(DEFAULT_THREADS, cores())
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _collected(faults: list[str]) -> Iterator[None]:
    """Adds the faults of a ConfigError to a list and goes on behind the `with`."""
    try:
        yield
    except ConfigError as error:
        faults.extend(error.faults)
