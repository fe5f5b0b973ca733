"""Memory that workers share with their parent, lent for one batch after the other.

New memory takes as long until each of its pages is there as hashing the rows that are read into it.

A worker takes one of its slots that is free, and the parent frees it once nothing refers to the batch's numbers any
more. Where all are taken, a batch gets memory of its own, as it would without slots.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

_ALIGNMENT = 64


class SlotTensor(NamedTuple):
    """A tensor in a slot, as it passes to the parent."""

    slot: int
    bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Slots:
    """The slots of some workers; picklable.

    Args:
        workers: The number of workers; each has slots of its own.
        per_worker: The number of slots of each.
        size: The bytes of a slot; 0 makes none.
    """

    def __init__(self, workers: int = 0, per_worker: int = 0, size: int = 0) -> None:
        self._per_worker = per_worker if size else 0
        count = workers * self._per_worker
        self._memory = torch.empty(count, -(-size // _ALIGNMENT) * _ALIGNMENT, dtype=torch.uint8)
        self._taken = torch.zeros(count, dtype=torch.uint8)
        if count:
            self._memory.share_memory_()
            self._taken.share_memory_()

    def take(self, like: Tensor) -> tuple[Tensor, Tensor | SlotTensor]:
        """Returns an uninitialised tensor of this type, shape and layout, in a worker's free slot if it has one.

        The second value is what passes to the parent: the place in the slot, or the tensor itself.
        """
        worker = get_worker_info()
        if worker is None:
            return like, like
        first = worker.id * self._per_worker
        for slot in range(first, first + self._per_worker):
            if like.nbytes <= self._memory.shape[1] and not self._taken[slot]:
                self._taken[slot] = 1
                place = SlotTensor(slot, like.nbytes, like.dtype, tuple(like.shape), like.stride())
                return _at(self._memory[slot], place), place
        like.share_memory_()  # now, so that no copy follows
        return like, like

    def unpacked(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Returns, in the parent, a batch with its tensors, whose slots are free again once nothing refers to them."""
        return {name: self._tensor(value) if isinstance(value, SlotTensor) else value for name, value in batch.items()}

    def _tensor(self, place: SlotTensor) -> Tensor:
        memory = self._memory[place.slot].numpy()
        weakref.finalize(memory, self._taken.__setitem__, place.slot, 0).atexit = False
        return _at(torch.from_numpy(memory), place)  # whose storage, which all its views share, keeps the array


def _at(memory: Tensor, place: SlotTensor) -> Tensor:
    return memory[: place.bytes].view(place.dtype).as_strided(place.shape, place.stride)
