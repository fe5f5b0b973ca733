"""The runtime `compile`, by torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from embedx.errors import RuntimeUnfitError
from embedx.models.embedder import Embedder
from embedx.models.outputs import FrozenProgram
from embedx.models.runtimes.base import DTYPES, Runtime
from embedx.values import Precision


class CompiledRuntime(Runtime):
    """The whole forward pass, from uint8 on, as one graph of a fixed shape with frozen weights.

    Raises:
        RuntimeUnfitError: If the compiler does not take the backbone, or the device has no compiler.
    """

    name = "compile"

    def __init__(self, embedder: Embedder, device: torch.device, precision: Precision, images: Tensor) -> None:
        super().__init__(embedder, device, precision)
        if isinstance(embedder.backbone, FrozenProgram):
            raise RuntimeUnfitError("the backbone is a program, which only runs as it was made: give --runtime eager")
        embedder.backbone.to(DTYPES[precision])
        embedder.backbone.to(memory_format=torch.channels_last)
        # CUDA graphs hold the outputs in memory of their own, which the next batch overwrites.
        options: dict[str, str | int | bool | Callable[..., Any]] = {
            "freezing": True,
            "triton.cudagraphs": device.type == "cuda",
            "deterministic": True,  # no kernel is chosen by timing, so that every member of a run has the same ones
        }
        self.embedder = torch.compile(embedder, dynamic=False, fullgraph=True, options=options)
        try:
            self(images.to(device))  # a tensor made in inference mode would be compiled for separately
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            raise RuntimeUnfitError.of(self.name, error) from error
