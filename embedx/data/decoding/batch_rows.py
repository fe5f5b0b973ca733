"""The rows of a batch, as workers fill them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import get_worker_info


class Rows(Protocol):
    """A batch that is being filled."""

    def fill(self, row: int, data: bytes) -> None:
        """Turns an input's bytes into a row.

        Raises:
            RejectedInputError: If that can't be done; the row is undefined then.
        """
        ...

    def clear(self, row: int) -> None:
        """Makes a row one of zeros."""
        ...

    def finish(self, count: int) -> dict[str, Any]:
        """The batch's entries; the rows from `count` on are padding."""
        ...


class Decoder(Protocol):
    """Begins batches, in a worker process; picklable."""

    def begin(self, batch_size: int) -> Rows:
        """A batch to be filled."""
        ...


class DenseDecoder(ABC):
    """Turns inputs into rows of one shape, of a single tensor that passes to the parent process without a copy."""

    entry: str
    """The batch's name for them."""

    @abstractmethod
    def empty(self, batch_size: int) -> Tensor:
        """A batch to be filled, of a fixed shape."""

    @abstractmethod
    def fill(self, row: Tensor, data: bytes) -> None:
        """Turns an input's bytes into its row.

        Raises:
            RejectedInputError: If that can't be done; the row is undefined then.
        """

    def begin(self, batch_size: int) -> Rows:
        """A batch to be filled."""
        return _DenseRows(self, batch_size)


class NoDecoder(DenseDecoder):
    """Leaves inputs undecoded, where only their sha256 is asked for."""

    entry = "nothing"

    def empty(self, batch_size: int) -> Tensor:
        """A batch [B, 0]."""
        return torch.empty(batch_size, 0)

    def fill(self, row: Tensor, data: bytes) -> None:
        """Does nothing."""


class _DenseRows:
    def __init__(self, decoder: DenseDecoder, batch_size: int) -> None:
        self._decoder = decoder
        self._inputs = decoder.empty(batch_size)
        if get_worker_info() is not None:
            self._inputs.share_memory_()  # type: ignore[no-untyped-call]  # now, so that no copy follows

    def fill(self, row: int, data: bytes) -> None:
        self._decoder.fill(self._inputs[row], data)

    def clear(self, row: int) -> None:
        self._inputs[row].zero_()

    def finish(self, count: int) -> dict[str, Any]:
        self._inputs[count:] = 0
        return {self._decoder.entry: self._inputs}
