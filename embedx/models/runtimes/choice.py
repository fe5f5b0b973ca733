"""Runtimes by name: how a forward pass is run. A runtime is one module here, and no other knows its library."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from embedx.models.embedder import Embedder
from embedx.models.runtimes.base import Runtime, RuntimeUnfitError
from embedx.models.runtimes.compiled import CompiledRuntime
from embedx.models.runtimes.eager import EagerRuntime
from embedx.models.runtimes.openvino import OpenVinoRuntime
from embedx.values import Precision, RuntimeName

_RUNTIMES = {runtime.name: runtime for runtime in (EagerRuntime, CompiledRuntime, OpenVinoRuntime)}

_WRITING = {"cpu": 1.75e9, "cuda": 6e11}
"""Bytes per second that the eager runtime's operations write, roughly, per core of a CPU or by a whole GPU, beyond what
they compute."""
_SAVING = {"openvino": 0.65, "compile": 0.4}
"""The share of that time which is saved, roughly: operations are fused, products and convolutions are as quick."""
_BUILD_SECONDS = {"openvino": 2.0, "compile": 25.0}
"""What building takes, roughly, beyond that of the eager runtime."""


def candidates(name: RuntimeName, device: torch.device, written_bytes: float | None, inputs: int) -> tuple[str, ...]:
    """The runtimes to try, the first that takes the backbone being it.

    Args:
        name: What was asked for; `auto` are those that are installed, and pay their building back, fastest first.
        device: Where.
        written_bytes: What the forward pass writes per image; None: that of a program, which is run as it is.
        inputs: How many images there are.
    """
    if name != "auto":
        return (name,)
    chosen = []
    if written_bytes is not None:
        threads = torch.get_num_threads() if device.type == "cpu" else 1
        seconds = inputs * written_bytes / (_WRITING[device.type] * threads)
        installed = ["openvino"] if device.type == "cpu" and find_spec("openvino") else []
        for each in (*installed, "compile"):
            if seconds * _SAVING[each] > _BUILD_SECONDS[each]:
                chosen.append(each)
    return (*chosen, EagerRuntime.name)


def libraries(name: str) -> tuple[str, ...]:
    """Packages beside torch that a runtime computes with; none where it is not installed."""
    return tuple(library for library in _RUNTIMES[name].libraries if find_spec(library))


def build(
    names: tuple[str, ...],
    load: Callable[[], Embedder],
    device: torch.device,
    precision: Precision,
    images: Tensor,
    notice: Callable[[str], None],
) -> Runtime:
    """Builds the first of these runtimes that takes the backbone.

    Args:
        names: Of runtimes, the preferred one first.
        load: Gives the backbone.
        device: Where.
        precision: Of weights and activations.
        images: [B, 3, H, W] uint8, of the shape and layout that all batches have; what is on them does not matter.
        notice: Told of each that does not take it, and why.

    Raises:
        RuntimeUnfitError: If none does.
        DeviceMemoryError: If it does not fit into the device's memory.
    """
    for number, name in enumerate(names, 1):
        try:
            return _RUNTIMES[name](load(), device, precision, images)
        except RuntimeUnfitError as error:
            if number == len(names):
                raise
            notice(f"{error}; going on with the runtime {names[number]}")
    raise ValueError("no runtime was named")
