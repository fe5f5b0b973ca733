"""The choice and construction of a runtime by name. Each runtime is one module, the only one that knows its library."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from embedx.errors import RuntimeUnfitError
from embedx.models.embedder import Embedder
from embedx.models.runtimes.base import Runtime
from embedx.models.runtimes.compiled import CompiledRuntime
from embedx.models.runtimes.eager import EagerRuntime
from embedx.models.runtimes.openvino import OpenVinoRuntime
from embedx.models.threads import ONE_AT_A_TIME
from embedx.values import Precision

_RUNTIMES = {runtime.name: runtime for runtime in (EagerRuntime, CompiledRuntime, OpenVinoRuntime)}


def rivals(device: torch.device) -> tuple[str, ...]:
    """Returns the runtimes that may be faster than eager mode on a device, the one first that is quickest to build."""
    installed = (OpenVinoRuntime.name,) if device.type == "cpu" and find_spec("openvino") else ()
    return (*installed, CompiledRuntime.name)


def libraries(name: str) -> tuple[str, ...]:
    """Returns the packages beside torch that a runtime computes with, if they are installed."""
    return tuple(library for library in _RUNTIMES[name].libraries if find_spec(library))


@ONE_AT_A_TIME
def build(
    names: tuple[str, ...],
    load: Callable[[], Embedder],
    device: torch.device,
    precision: Precision,
    images: Tensor,
    notice: Callable[[str], None],
) -> Runtime:
    """Builds the first of these runtimes that takes the backbone, which is loaded anew for each attempt.

    The `images` [B, 3, H, W] uint8 have the shape and layout of all batches; their pixels do not matter. `notice` is
    called with a message for each runtime that does not take the backbone.

    Raises:
        RuntimeUnfitError: If no runtime takes it.
        DeviceMemoryError: If the backbone does not fit into the device's memory.
    """
    for number, name in enumerate(names, 1):
        try:
            return _RUNTIMES[name](load(), device, precision, images)
        except RuntimeUnfitError as error:
            if number == len(names):
                raise
            notice(f"{error}; going on with the runtime {names[number]}")
    raise ValueError("no runtime was named")
