"""The choices that a run makes by its own first batches: the precision and the runtime, where they are `auto`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn

from embedx.data.loading.peeked import PeekedLoader
from embedx.engine.loop import unpad
from embedx.errors import DeviceMemoryError, RuntimeUnfitError
from embedx.models.runtimes import trial
from embedx.models.runtimes.base import Runtime
from embedx.run.job import Job

SMALLEST_COSINE = 0.9995
"""The cosine of a row in bf16 and in fp32 that `--precision auto` takes bf16 for, or a larger one."""
COMPARED_ROWS = 64
"""The number of the run's first rows that `--precision auto` computes in both."""


class Settled(NamedTuple):
    """A run of which everything is settled, and its model."""

    job: Job
    runtime: Runtime
    model: nn.Module
    """The module that the loop calls: the runtime, which may have computed the first batches already."""
    seconds: float = 0.0
    """The time that computing these has taken."""
    measured: Mapping[str, float] = MappingProxyType({})
    """The measurements, by the names that `embedx.models.runtimes.trial.Trial` gives, and the smallest cosine."""


def settle(job: Job, loader: PeekedLoader, batches: int, console: Console) -> Settled:
    """Settles the precision and the runtime, where they are `auto`, by the first batches of a loader.

    Args:
        job: The run, of which something may be open.
        loader: The loader of the first batches.
        batches: The number of batches of the run.
        console: The receiver of notices.
    """
    transfer = job.transfer()

    @cache
    def batch(number: int) -> dict[str, Any]:
        return transfer(loader.peek(number))

    def images(number: int) -> Tensor:
        found: Tensor = batch(number % len(loader))[job.decoder.entry]
        return found

    measured: dict[str, float] = {}
    if job.may_take_bf16:
        needed = -(-COMPARED_ROWS // job.batch_size)
        job, cosine = settle_precision(job, [batch(number) for number in range(min(needed, len(loader)))], console)
        measured["trial_smallest_cosine"] = cosine
    begun = time.perf_counter()
    first = job.build_model(console)
    build_seconds = time.perf_counter() - begun
    if not job.rivals or batches < trial.SHORTEST_RUN:
        return Settled(dataclasses.replace(job, runtimes=(first.name,), rivals=()), first, first, measured=measured)
    found = trial.find_fastest(first, build_seconds, job.rivals, _builder(job, console), images, batches)
    if job.device.type == "cuda":
        torch.cuda.empty_cache()  # of those that lost
    if found.model is not first:
        rates = {name.rpartition("/")[2]: rate for name, rate in found.measured.items() if "per_second" in name}
        text = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
        console.print(f"--runtime auto: {found.model.name} (forward passes alone, images/s: {text})", markup=False)
    job = dataclasses.replace(job, runtimes=(found.model.name,), rivals=())
    model = trial.AheadOfTheLoop(found.model, found.outputs[: len(loader)])
    return Settled(job, found.model, model, found.seconds, {**measured, **found.measured})


def _builder(job: Job, console: Console) -> Callable[[str], Runtime | None]:
    def build(name: str) -> Runtime | None:
        try:
            return dataclasses.replace(job, runtimes=(name,)).build_model(console)
        except (RuntimeUnfitError, DeviceMemoryError, torch.OutOfMemoryError):
            return None

    return build


def settle_precision(job: Job, batches: Sequence[Mapping[str, Any]], console: Console) -> tuple[Job, float]:
    """Takes bf16 if the rows of these batches are nearly those that fp32 gives.

    Args:
        job: The run, in the device's default precision.
        batches: Batches on the device.
        console: The receiver of a notice.

    Returns:
        The run in the precision that was taken, and the smallest cosine of a row's tensors in bf16 and in fp32; 1 if
        no input gave a row.
    """
    exact = dataclasses.replace(job, precision="fp32").build_model(console)
    expected = [_good_rows(exact, job, batch) for batch in batches]
    coarse_job = dataclasses.replace(job, precision="bf16")
    coarse = coarse_job.build_model(console)
    found = [_good_rows(coarse, coarse_job, batch) for batch in batches]
    compared = torch.cat(
        [
            torch.cosine_similarity(rows[name], then[name])
            for rows, then in zip(found, expected, strict=True)
            for name in then
        ]
    )
    smallest = compared.min().item() if len(compared) else 1.0
    is_near = smallest >= SMALLEST_COSINE  # and so no NaN
    taken = coarse_job if is_near and len(compared) else job
    console.print(
        f"--precision auto: {taken.precision}, as the smallest cosine of bf16 to fp32 over the first rows is "
        f"{smallest:.6f}, and {SMALLEST_COSINE} are asked for",
        markup=False,
        soft_wrap=True,
    )
    return dataclasses.replace(taken, may_take_bf16=False), smallest


def _good_rows(model: Runtime, job: Job, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Computes a batch; returns the rows of its inputs that were read, as vectors of float64 on the CPU."""
    with torch.inference_mode():
        outputs = unpad(model(batch[job.decoder.entry]), dict(batch))
    ok = [reason is None for reason in batch["reasons"]]
    return {name: tensor.cpu()[ok].flatten(1).double() for name, tensor in outputs.items()}
