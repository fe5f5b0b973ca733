"""A ring of slots in shared memory, through which batches' tensors pass from one process to another.

It is allocated once and inherited by the child. The tensors of batch n lie in slot n modulo the number of slots. There
are two slots more than the queue has places, one for the batch being written and one for the batch being read, so that
a slot is free again by the time its turn comes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from multiprocessing.context import BaseContext
from typing import NamedTuple

import torch
from torch import Tensor

_ALIGNMENT = 64


class TensorPlace(NamedTuple):
    """The place of a tensor in the shared memory."""

    dtype: torch.dtype
    shape: torch.Size
    offset: int


class SlotRing:
    """The slots; picklable only as an argument of a process that is being started.

    Args:
        context: The multiprocessing context of the two processes.
        slot_bytes: The number of bytes in one slot, see `bytes_needed`.
        queue_length: The largest number of items that wait between the two processes.
    """

    def __init__(self, context: BaseContext, slot_bytes: int, queue_length: int) -> None:
        self.slot_bytes = slot_bytes
        self._slots = queue_length + 2
        self._memory = context.RawArray(ctypes.c_byte, max(1, self._slots * slot_bytes))

    def write(self, item: int, tensors: Mapping[str, Tensor]) -> dict[str, TensorPlace]:
        """Copies the tensors of item n, from any device, into its slot; `read` takes them from these places."""
        offset = item % self._slots * self.slot_bytes
        places = {}
        for name, tensor in tensors.items():
            places[name] = TensorPlace(tensor.dtype, tensor.shape, offset)
            if tensor.device.type == "cpu" and tensor.is_contiguous():
                # On this thread alone: torch's would share the work with threads that the other processes hold up.
                ctypes.memmove(ctypes.addressof(self._memory) + offset, tensor.data_ptr(), tensor.nbytes)
            else:
                self.read(places[name]).copy_(tensor)
            offset += _padded(tensor.nbytes)
        return places

    def read(self, place: TensorPlace) -> Tensor:
        """Returns the tensor at a place: no copy, and valid until the next item is taken from the queue."""
        memory = torch.frombuffer(self._memory, dtype=place.dtype, count=place.shape.numel(), offset=place.offset)
        return memory.view(place.shape)


def bytes_needed(tensors: Mapping[str, Tensor], rows: int = 1) -> int:
    """Returns the number of bytes of a slot that holds these tensors [n, ...], or at least so many rows of them."""
    return sum(max(_padded(tensor.nbytes), _padded(tensor[:1].nbytes * rows)) for tensor in tensors.values())


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
