"""The same bits whatever computes them: the hardware of the units before, and the number of threads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console

from embedx.errors import StoreMismatchError
from embedx.models.runtimes.base import Runtime
from embedx.run.job import Job
from embedx.store.format import hardware
from embedx.store.writing.session import StoreSession


def environments_of(session: StoreSession) -> list[dict[str, Any]]:
    """Returns the hardware and the libraries that have computed the units of a store, the most frequent first."""
    return hardware.distinct(session.checks.whole_units(session.root).values())


def check_hardware(before: Sequence[Mapping[str, Any]], now: Mapping[str, Any]) -> None:
    """Checks that units are computed on the hardware, and with the libraries, of those before them.

    Raises:
        StoreMismatchError: If something differs.
    """
    for environment in before:
        if differing := hardware.differences(environment, now):
            raise StoreMismatchError(
                f"--same-hardware: units were computed elsewhere (then → now): {'; '.join(differing)}; go on there, or "
                "leave that option out: rows may then differ in their last bits"
            )


def tell_hardware(session: StoreSession, console: Console) -> None:
    """Tells if the store's units were computed on different hardware."""
    first, *others = session.environments or [{}]
    if differing := list(dict.fromkeys(text for other in others for text in hardware.differences(first, other))):
        console.print(
            f"units were computed on different hardware, so that rows may differ in their last bits: "
            f"{'; '.join(differing)} (`embedx info` lists them; --same-hardware refuses it)",
            markup=False,
            soft_wrap=True,
        )


def threads_of(session: StoreSession) -> int | None:
    """Returns the number of threads that has computed most units of a store, or else that of the run that began it.

    None where the store does not state it.
    """
    known = [*environments_of(session), session.manifest.environment.to_json()]
    return next((found["threads"] for found in known if isinstance(found.get("threads"), int)), None)


def settle_threads(job: Job, model: Runtime, reference: int | None, console: Console) -> Runtime:
    """Makes torch compute, on the CPU, the bits that another number of threads computes, or has computed.

    The libraries choose kernels, and split sums, by the number of threads. Whether that changes the last bits depends
    on the backbone, the size of a batch and the processor: so a batch is computed with both numbers, and if one bit
    differs, the other number of threads it is.

    Args:
        job: The run, with the runtime of the model.
        model: The model, built with the number of threads that torch has now.
        reference: The other number; None if there is none to keep to.
        console: The receiver of a notice.

    Returns:
        The model to compute with.
    """
    own = torch.get_num_threads()
    if job.device.type != "cpu" or reference in (None, own):
        return model
    images = job.decoder.empty(job.batch_size)
    images.random_(0, 256, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        rows = {name: tensor.clone() for name, tensor in model(images).items()}
    torch.set_num_threads(reference)
    other = dataclasses.replace(job, runtimes=(model.name,)).build_model(console)
    with torch.inference_mode():
        others = other(images)
    if all(torch.allclose(rows[name], others[name], rtol=0, atol=0, equal_nan=True) for name in rows):
        torch.set_num_threads(own)
        return model
    threads = "1 thread" if reference == 1 else f"{reference} threads"
    console.print(f"computing with {threads}, as with {own} the last bits of these rows would differ", markup=False)
    return other
