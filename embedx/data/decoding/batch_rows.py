"""The interface of decoders: buffers that workers fill with one batch, row by row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from torch import Tensor

from embedx.data.sources.base import Run


class BatchBuffer(Protocol):
    """The rows of one batch, filled in a worker process."""

    def decode_into(self, row: int, data: bytes) -> None:
        """Decodes an input's bytes into a row.

        Raises:
            RejectedInputError: If the input can't be decoded; the row is undefined then.
        """
        ...

    def zero(self, row: int) -> None:
        """Sets a row to zeros."""
        ...

    def to_batch(self, count: int) -> dict[str, Any]:
        """Returns the decoder's entries of the batch; the rows from `count` on are padding."""
        ...


@runtime_checkable
class RunBuffer(BatchBuffer, Protocol):
    """The rows of one batch, which can be filled by a run of inputs at once."""

    def decode_run(self, first: int, run: Run) -> None:
        """Decodes n inputs into the n rows from `first` on.

        Raises:
            RejectedInputError: If one of them can't be decoded; the rows are undefined then.
        """
        ...


Lend: TypeAlias = Callable[[Tensor], tuple[Tensor, Any]]
"""Returns memory for a tensor of this type, shape and layout, and what stands in the batch for it on its way."""


def own_memory(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Lends the tensor's own memory."""
    return tensor, tensor


class Decoder(Protocol):
    """Makes the buffers that workers fill; picklable."""

    def new_buffer(self, batch_size: int, lend: Lend = own_memory) -> BatchBuffer:
        """Returns an empty buffer of so many rows, which may be in memory that is lent."""
        ...


def batch_bytes(decoder: Decoder, batch_size: int) -> int:
    """Returns the bytes of a batch's tensors, as far as they are known before a batch is decoded."""
    with torch.device("meta"):
        entries = decoder.new_buffer(batch_size).to_batch(0).values()
    return sum(entry.nbytes for entry in entries if isinstance(entry, Tensor))


class DenseDecoder(ABC):
    """Decodes inputs into rows of one tensor, which passes to the parent process without a copy."""

    entry: str
    """The name of that tensor in a batch."""

    @abstractmethod
    def empty(self, batch_size: int) -> Tensor:
        """Returns an uninitialised tensor of a fixed shape, a row per input."""

    @abstractmethod
    def decode_into(self, row: Tensor, data: bytes) -> None:
        """Decodes an input's bytes into its row.

        Raises:
            RejectedInputError: If the input can't be decoded; the row is undefined then.
        """

    def new_buffer(self, batch_size: int, lend: Lend = own_memory) -> BatchBuffer:
        """Returns an empty buffer of so many rows, in memory that is lent."""
        return _TensorBuffer(self, batch_size, lend)


class RunDecoder(DenseDecoder):
    """Decodes runs of inputs too, into several rows at once."""

    @abstractmethod
    def decode_run(self, rows: Tensor, run: Run) -> None:
        """Decodes n inputs into n rows, as `decode_into` does one by one.

        Raises:
            RejectedInputError: If one of them can't be decoded; the rows are undefined then.
        """

    def new_buffer(self, batch_size: int, lend: Lend = own_memory) -> BatchBuffer:
        """Returns an empty buffer of so many rows, in memory that is lent; it takes runs."""
        return _RunTensorBuffer(self, batch_size, lend)


class NoDecoder(RunDecoder):
    """Leaves inputs undecoded, for runs that need only their sha256."""

    entry = "nothing"

    def empty(self, batch_size: int) -> Tensor:
        """Returns a tensor [B, 0]."""
        return torch.empty(batch_size, 0)

    def decode_into(self, row: Tensor, data: bytes) -> None:
        """Does nothing."""

    def decode_run(self, rows: Tensor, run: Run) -> None:
        """Does nothing."""


D = TypeVar("D", bound=DenseDecoder)


class _TensorBuffer(Generic[D]):
    def __init__(self, decoder: D, batch_size: int, lend: Lend) -> None:
        self._decoder = decoder
        self._inputs, self._sent = lend(decoder.empty(batch_size))

    def decode_into(self, row: int, data: bytes) -> None:
        self._decoder.decode_into(self._inputs[row], data)

    def zero(self, row: int) -> None:
        self._inputs[row].zero_()

    def to_batch(self, count: int) -> dict[str, Any]:
        self._inputs[count:] = 0
        return {self._decoder.entry: self._sent}


class _RunTensorBuffer(_TensorBuffer[RunDecoder]):
    def decode_run(self, first: int, run: Run) -> None:
        self._decoder.decode_run(self._inputs[first : first + len(run.values)], run)
