"""Outputs that are being copied from the device to the host, several at a time, so that the loop waits for none."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_SLOTS = 4
"""The number of outputs that may be pending."""


HostCopier = Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], torch.cuda.Event | None]]
"""Starts copying tensors to the host; the copies may be read once the event is complete, or at once if it is None."""


def no_copy(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], None]:
    """Returns tensors that are on the host already."""
    return dict(tensors), None


def copier_for(device: torch.device) -> HostCopier:
    """Returns the copier for tensors on this device.

    That of a CUDA device copies to pinned memory, on a stream beside the one that computes. Tensors on another device,
    or on the host, it copies at once.
    """
    if device.type != "cuda":
        return no_copy
    stream = torch.cuda.Stream(device)

    def copy(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], torch.cuda.Event]:
        """Starts copying; torch's allocators reuse memory only once the copies from or to it are complete."""
        on_device = {name: tensor for name, tensor in tensors.items() if tensor.device == stream.device}
        own = {name: tensor.clone() for name, tensor in on_device.items()}  # the next forward pass may overwrite them
        copies = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items() if name not in on_device}
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            for name, tensor in own.items():
                copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                copies[name].copy_(tensor, non_blocking=True)
                tensor.record_stream(stream)
            event = torch.cuda.Event(blocking=True)
            event.record(stream)
        return {name: copies[name] for name in tensors}, event

    return copy


class PendingOutputs(Generic[T]):
    """A queue of outputs that are being copied to the host, oldest first.

    Args:
        copier: The copier of the outputs' device.
        slots: The number of outputs that may be pending; beyond it, the oldest is waited for.
    """

    def __init__(self, copier: HostCopier, slots: int = _SLOTS) -> None:
        self._copier = copier
        self._slots = slots
        self._pending: deque[tuple[T, dict[str, Tensor], torch.cuda.Event | None]] = deque()

    def add(self, item: T, tensors: Mapping[str, Tensor]) -> None:
        """Starts copying a batch's outputs, which may be overwritten later; `item` is handed out with them."""
        self._pending.append((item, *self._copier(tensors)))

    def complete(self, *, wait_for_all: bool = False) -> Iterator[tuple[T, dict[str, Tensor]]]:
        """Takes the outputs whose copies are complete; waits for all, or only while more than `slots` are pending."""
        while self._pending:
            item, tensors, event = self._pending[0]
            if event is not None and not event.query():
                if not wait_for_all and len(self._pending) <= self._slots:
                    return
                event.synchronize()
            self._pending.popleft()
            yield item, tensors
