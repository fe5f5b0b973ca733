"""The cosine similarities of rows, tile by tile, in bounded memory.

Shapes: N rows of all parts, n rows of one block and m of another, D embedding dimension.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedx.vectors.vector_rows import VectorRows, unit_length

BLOCK_ROWS = 4096
"""The rows of a block on the CPU; the similarities of two blocks take 64 MiB."""
CUDA_BLOCK_ROWS = 8192
"""The rows of a block on CUDA, where each tile waits for the processor."""
KEPT_BYTES = 512 * 1024**2
"""The size up to which vectors of unit length are kept; the others are read again for every tile."""
_KEPT_SHARE_OF_CUDA = 0.4
"""The share of a CUDA device's free memory for that."""


class Tile(NamedTuple):
    """The similarities of the rows of one block to those of another."""

    row: int
    """The number of the first block's first row."""
    column: int
    """The number of the second block's first row."""
    similarities: Tensor
    """The cosine similarities [n, m] float32; -2 where a row would meet itself. The next tile overwrites them."""


class UnitBlocks:
    """The rows of several parts, numbered in their order, as blocks of vectors of unit length.

    Args:
        parts: The parts; no block has rows of two parts.
        device: The device that compares the rows.
        block_rows: The largest number of rows in a block; None takes the device's own.
        kept_bytes: The size up to which vectors of unit length are kept; None takes the device's own.
    """

    def __init__(
        self,
        parts: Sequence[VectorRows],
        device: torch.device,
        *,
        block_rows: int | None = None,
        kept_bytes: int | None = None,
    ) -> None:
        self.device = device
        self.dim = parts[0].dim
        most = block_rows or (CUDA_BLOCK_ROWS if device.type == "cuda" else BLOCK_ROWS)
        self.blocks: list[VectorRows] = []
        self.starts: list[int] = []
        """The number of each block's first row."""
        self.part_of: list[int] = []
        """The place of each block's part."""
        self.count = 0
        for place, part in enumerate(parts):
            for start in range(0, len(part), most):
                block = dataclasses.replace(part, table=part.table.slice(start, most))
                self.blocks.append(block)
                self.starts.append(self.count)
                self.part_of.append(place)
                self.count += len(block)
        self._free = _free_bytes(device) if kept_bytes is None else kept_bytes
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.blocks)

    def unit(self, number: int) -> Tensor:
        """Returns the vectors [n, D] float32 of a block on the device; a row without a direction is zeros."""
        if number in self._kept:
            return self._kept[number]
        ((_, rows),) = self.blocks[number].blocks(len(self.blocks[number]))
        unit = unit_length(rows.to(self.device))
        if unit.nbytes <= self._free:
            self._free -= unit.nbytes
            self._kept[number] = unit
        return unit

    def exact(self, numbers: NDArray[np.int64]) -> Tensor:
        """Returns rows [n, D] float64 of unit length on the device, by their numbers in any order."""
        block_of = np.searchsorted(self.starts, numbers, side="right") - 1
        found = torch.empty(len(numbers), self.dim, dtype=torch.float64, device=self.device)
        for block in np.unique(block_of).tolist():
            own = np.flatnonzero(block_of == block)
            rows = self.blocks[block].take(numbers[own] - self.starts[block])
            found[torch.from_numpy(own).to(self.device)] = unit_length(rows.to(self.device).double())
        return found

    def has_direction(self) -> NDArray[np.bool_]:
        """Reads every row once, with its shard's checksum, and tells which [N] are neither zeros nor have NaN."""
        found = [(self.unit(number) != 0).any(dim=1).cpu().numpy() for number in range(len(self))]
        return np.concatenate(found)


def pairs_of_blocks(blocks: UnitBlocks, border: int | None = None) -> list[tuple[int, int]]:
    """Lists the pairs of blocks to compare, so that each block's own tile precedes those to the blocks behind it.

    Args:
        blocks: The blocks of rows.
        border: The number of parts that are compared with the parts behind them alone; None compares all rows with all.
    """
    every = range(len(blocks))
    if border is None:
        return [(first, second) for first in every for second in every[first:]]
    left = sum(part < border for part in blocks.part_of)
    return [(first, second) for first in every[:left] for second in every[left:]]


def tiles(blocks: UnitBlocks, pairs: Sequence[tuple[int, int]]) -> Iterator[Tile]:
    """Yields the similarities of these pairs of blocks, in this order."""
    most = max(map(len, blocks.blocks))
    memory = torch.empty(most * most, device=blocks.device)
    first, unit = -1, memory
    for row, column in pairs:
        if row != first:
            first, unit = row, blocks.unit(row)
        other = unit if column == row else blocks.unit(column)
        similarities = memory[: len(unit) * len(other)].view(len(unit), len(other))
        with _whole_float32():
            torch.mm(unit, other.T, out=similarities)
        if row == column:
            similarities.fill_diagonal_(-2)
        yield Tile(blocks.starts[row], blocks.starts[column], similarities)


@contextlib.contextmanager
def _whole_float32() -> Iterator[None]:
    """Multiplies in float32 itself, whatever shorter type a program has allowed."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _free_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return KEPT_BYTES
    return int(_KEPT_SHARE_OF_CUDA * torch.cuda.mem_get_info(device)[0])
