"""Batches that are looked at before they are iterated over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from embedx.data.loading.loaders import SplitLoader


class PeekedLoader:
    """A loader, whose first batches can be had ahead of the iteration, which has them too."""

    def __init__(self, loader: SplitLoader) -> None:
        self._loader = loader
        self._batches: Iterator[dict[str, Any]] | None = None
        self._taken: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._loader)

    def peek(self, number: int) -> dict[str, Any]:
        """Returns the batch of this number from 0 on; it counts round and round where there are fewer.

        Raises:
            IndexError: If there is none at all.
        """
        self._batches = self._batches or iter(self._loader)
        while len(self._taken) <= number and (batch := next(self._batches, None)) is not None:
            self._taken.append(batch)
        if not self._taken:
            raise IndexError("the loader has no batch")
        return self._taken[number % len(self._taken)]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields all batches in order, once."""
        self._taken.reverse()
        while self._taken:
            yield self._taken.pop()
        yield from self._batches or self._loader

    def start(self) -> None:
        """Starts the workers; they decode ahead while the caller does something else."""
        self._loader.start()

    def close(self) -> None:
        """Ends the workers, if batches are left."""
        self._loader.close()
