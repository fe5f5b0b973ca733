"""Outputs that are being copied from the device to the host, several at a time, so that the loop waits for none."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_SLOTS = 4
"""The number of outputs that may be pending."""


class CopyEvent(Protocol):
    """The event at which a copy is complete; torch.cuda.Event is one."""

    def query(self) -> bool:
        """Tells whether the copy is complete."""
        ...

    def synchronize(self) -> None:
        """Waits until the copy is complete."""
        ...


HostCopier = Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], CopyEvent | None]]
"""Starts copying tensors to the host; the copies may be read once the event is complete, or at once if it is None."""


def no_copy(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], None]:
    """Returns tensors that are on the host already."""
    return dict(tensors), None


class CudaCopier:
    """Copies a CUDA device's tensors to pinned memory, on a stream beside the one that computes.

    Tensors on another device, or on the host, are copied at once.

    Args:
        device: The CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], CopyEvent]:
        """Starts copying; torch's allocators reuse memory only once the copies from or to it are complete."""
        on_device = {name: tensor for name, tensor in tensors.items() if tensor.device == self._stream.device}
        own = {name: tensor.clone() for name, tensor in on_device.items()}  # the next forward pass may overwrite them
        copies = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items() if name not in on_device}
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            for name, tensor in own.items():
                copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                copies[name].copy_(tensor, non_blocking=True)
                tensor.record_stream(self._stream)
            event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            event.record(self._stream)
        return {name: copies[name] for name in tensors}, event


def copier_for(device: torch.device) -> HostCopier:
    """Returns the copier for tensors on this device."""
    return CudaCopier(device) if device.type == "cuda" else no_copy


class _Pending(NamedTuple, Generic[T]):
    item: T
    tensors: dict[str, Tensor]
    event: CopyEvent | None


class PendingOutputs(Generic[T]):
    """A queue of outputs that are being copied to the host, oldest first.

    Args:
        copier: The copier of the outputs' device.
        slots: The number of outputs that may be pending; beyond it, the oldest is waited for.
    """

    def __init__(self, copier: HostCopier, slots: int = _SLOTS) -> None:
        self._copier = copier
        self._slots = slots
        self._pending: deque[_Pending[T]] = deque()

    def add(self, item: T, tensors: Mapping[str, Tensor]) -> None:
        """Starts copying a batch's outputs.

        Args:
            item: Anything that belongs to the outputs; it is handed out with them.
            tensors: The outputs on the device. Later work in the same stream may overwrite them.
        """
        self._pending.append(_Pending(item, *self._copier(tensors)))

    def complete(self, *, wait_for_all: bool = False) -> Iterator[tuple[T, dict[str, Tensor]]]:
        """Takes the outputs whose copies are complete, oldest first; waits only while more than `slots` are pending.

        Args:
            wait_for_all: True waits for all pending outputs.
        """
        while self._pending:
            oldest = self._pending[0]
            if oldest.event is not None and not oldest.event.query():
                if not wait_for_all and len(self._pending) <= self._slots:
                    return
                oldest.event.synchronize()
            self._pending.popleft()
            yield oldest.item, oldest.tensors
