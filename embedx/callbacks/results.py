"""Results on their way from the device to the host: several at a time, so that the loop waits for none of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_SLOTS = 4
"""Results that may be under way."""


class Arrival(Protocol):
    """That a copy has come to its end, as torch.cuda.Event tells it."""

    def query(self) -> bool:
        """Whether it has."""
        ...

    def synchronize(self) -> None:
        """Waits until it has."""
        ...


class Copies(Protocol):
    """How a device's tensors are copied to the host."""

    def start(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Arrival]:
        """Begins to copy what the device will have computed; the copies are good once they have arrived."""
        ...


class _Here:
    """The arrival of what is on the host already."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


class NoCopies:
    """Of tensors that are on the host already."""

    def start(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Arrival]:
        """Gives the tensors themselves."""
        return dict(tensors), _Here()


class CudaCopies:
    """Of tensors on a CUDA device, to pinned memory, on a stream of their own beside the one that computes.

    What is on another device, or on the host, is copied at once.

    Args:
        device: Which.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def start(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Arrival]:
        """Begins to copy; torch's allocators give memory out again once the copies that use it have come to an end."""
        here = {name: tensor for name, tensor in tensors.items() if tensor.device == self._stream.device}
        own = {name: tensor.clone() for name, tensor in here.items()}  # by the stream that may overwrite it next
        copies = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items() if name not in here}
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            for name, tensor in own.items():
                copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                copies[name].copy_(tensor, non_blocking=True)
                tensor.record_stream(self._stream)
            arrival = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            arrival.record(self._stream)
        return {name: copies[name] for name in tensors}, arrival


def copies_from(device: torch.device) -> Copies:
    """How tensors on this device come to the host."""
    return CudaCopies(device) if device.type == "cuda" else NoCopies()


class _UnderWay(NamedTuple, Generic[T]):
    item: T
    tensors: dict[str, Tensor]
    arrival: Arrival


class Results(Generic[T]):
    """What was sent on its way, in order.

    Args:
        copies: How it is copied.
        slots: How much may be under way; for more, the oldest is waited for.
    """

    def __init__(self, copies: Copies, slots: int = _SLOTS) -> None:
        self._copies = copies
        self._slots = slots
        self._under_way: deque[_UnderWay[T]] = deque()

    def send(self, item: T, tensors: Mapping[str, Tensor]) -> None:
        """Begins to copy a result's tensors.

        Args:
            item: What goes with it.
            tensors: On the device; they may be overwritten by what is computed after this call, in the same stream.
        """
        self._under_way.append(_UnderWay(item, *self._copies.start(tensors)))

    def arrived(self, *, until_empty: bool = False) -> Iterator[tuple[T, dict[str, Tensor]]]:
        """Takes what has arrived, the oldest first; waits only while more is under way than may be.

        Args:
            until_empty: Whether to wait for all that is under way.
        """
        while self._under_way:
            oldest = self._under_way[0]
            if not oldest.arrival.query():
                if not until_empty and len(self._under_way) <= self._slots:
                    return
                oldest.arrival.synchronize()
            self._under_way.popleft()
            yield oldest.item, oldest.tensors
