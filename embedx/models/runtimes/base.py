"""The interface of every runtime: an embedder on a device, in a precision, with errors that name a batch that fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from embedx.errors import DeviceMemoryError
from embedx.models.embedder import Embedder
from embedx.models.outputs import FrozenProgram
from embedx.values import Precision

SMALL_BATCH = 32
"""The size of batches on the CPU, where more gains nothing, and the least that `--batch-size auto` tries first."""
_LARGEST_BATCH = 1024
_LEAST_BATCHES = 32
"""The batches that a run has at least, so that its workers share them evenly and little of the last one is padding."""
SPARE = 0.1
"""The share of a device's memory that a batch found by trial, or a recorded graph, leaves free."""
_WAYS_OUT = "free some, or give a smaller --image-size, --precision bf16 or --device cpu"
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def largest_batch(device: torch.device, inputs: int) -> int:
    """Returns the largest batch, a power of two, that `--batch-size auto` tries for so many inputs."""
    if device.type == "cpu":
        return SMALL_BATCH
    share: int = 2 ** max(0, (inputs // _LEAST_BATCHES).bit_length() - 1)
    return min(max(share, SMALL_BATCH), _LARGEST_BATCH)


class Runtime(nn.Module):
    """A backbone that is ready to run: from a uint8 batch of a fixed shape on the CPU to features on the device.

    Args:
        embedder: The model to run. It is modified in place; don't use it afterwards.
        device: The device on which the forward pass runs.
        precision: The precision of weights and activations; `tf32` lets CUDA round the factors of fp32 products.

    Raises:
        DeviceMemoryError: If the weights do not fit into the device's memory.
    """

    name: ClassVar[str]
    libraries: ClassVar[tuple[str, ...]] = ()
    """The packages beside torch that compute."""
    embedder: Callable[[Tensor], dict[str, Tensor]]

    def __init__(self, embedder: Embedder, device: torch.device, precision: Precision) -> None:
        super().__init__()
        self.device = device
        self._precision = precision
        self.set_tf32()
        self._exhausted = f"{device.type.upper()} is out of memory"
        self.takes_any_batch = not isinstance(embedder.backbone, FrozenProgram)
        try:
            embedder.requires_grad_(False).to(device)
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(f"{self._exhausted} with the weights alone; {_WAYS_OUT}") from error

    def set_tf32(self) -> None:
        """Sets whether CUDA rounds factors to tf32, which is one setting for the whole process."""
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = self._precision == "tf32"
            torch.backends.cudnn.allow_tf32 = self._precision == "tf32"

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Computes the features [B, D] of images [B, 3, H, W] uint8.

        Raises:
            DeviceMemoryError: If the batch does not fit into the device's memory; the message has the size that fits.
        """
        try:
            return self.compute(images)
        except torch.OutOfMemoryError:
            pass  # leaving this block frees the traceback, which holds all that was computed so far
        message = f"{self._exhausted} with --batch-size {len(images)}"
        if not self.takes_any_batch:
            raise DeviceMemoryError(f"{message}; {_WAYS_OUT}")
        fitting = self.fitting_batch_size(images[: len(images) // 2])
        raise DeviceMemoryError(f"{message}; {fitting} fits (tried): give --batch-size {fitting}, or auto")

    def compute(self, images: Tensor) -> dict[str, Tensor]:
        """Computes the features of a batch.

        Raises:
            torch.OutOfMemoryError: If the batch does not fit into the device's memory.
        """
        with torch.inference_mode():
            return self.embedder(images.to(self.device, non_blocking=True))

    def fitting_batch_size(self, images: Tensor) -> int:
        """Returns the first of B, B/2, B/4, …, at which so many images [B, 3, H, W] uint8 leave memory to spare.

        Raises:
            DeviceMemoryError: If not even one image fits.
        """
        size = len(images)
        while size and not self._fits(images[:size]):
            size //= 2
        self._release_memory()
        if size == 0:
            raise DeviceMemoryError(f"{self._exhausted} even with one image at a time; {_WAYS_OUT}")
        return size

    def _fits(self, images: Tensor) -> bool:
        self._release_memory()
        try:
            self.compute(images)
        except torch.OutOfMemoryError:
            return False
        return len(images) == 1 or self._spare_memory() >= SPARE

    def _release_memory(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def _spare_memory(self) -> float:
        """Returns the smallest share of the memory allowed to this process that was free since the last release."""
        if self.device.type != "cuda":
            return 1.0
        free, total = torch.cuda.mem_get_info(self.device)
        allowed = total * torch.cuda.get_per_process_memory_fraction(self.device)
        available = min(free + torch.cuda.memory_reserved(self.device), allowed)
        return 1 - torch.cuda.max_memory_reserved(self.device) / available
