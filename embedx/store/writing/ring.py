"""A ring of slots in shared memory, through which batches' tensors pass from one process to the other.

It is allocated once and inherited by the child. Item n of the queue between the two lies in slot n modulo their
number; with two slots more than the queue has places (the item being written, and the one being read), a slot is
free again by the time its turn comes.
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
    """Where in the shared memory a tensor lies."""

    dtype: torch.dtype
    shape: torch.Size
    offset: int


class SlotRing:
    """The slots; picklable as an argument of a process that is being started, and only then.

    Args:
        context: Of the two processes.
        slot_bytes: What one slot holds, see `bytes_needed`.
        queue_length: Items that may wait between the two processes.
    """

    def __init__(self, context: BaseContext, slot_bytes: int, queue_length: int) -> None:
        self.slot_bytes = slot_bytes
        self._slots = queue_length + 2
        self._memory = context.RawArray(ctypes.c_byte, max(1, self._slots * slot_bytes))

    def write(self, item: int, tensors: Mapping[str, Tensor]) -> dict[str, TensorPlace]:
        """Copies the tensors of the given item, from wherever they are, into its slot."""
        offset = item % self._slots * self.slot_bytes
        places = {}
        for name, tensor in tensors.items():
            places[name] = TensorPlace(tensor.dtype, tensor.shape, offset)
            self.read(places[name]).copy_(tensor)
            offset += _padded(tensor.nbytes)
        return places

    def read(self, place: TensorPlace) -> Tensor:
        """The tensor that lies there: no copy, and good until the next item is taken from the queue."""
        memory = torch.frombuffer(self._memory, dtype=place.dtype, count=place.shape.numel(), offset=place.offset)
        return memory.view(place.shape)


def bytes_needed(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of a slot that holds these tensors."""
    return sum(_padded(tensor.nbytes) for tensor in tensors.values())


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
