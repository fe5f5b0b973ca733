"""`embedx.duplicates(store)`: groups of rows whose inputs are the same, or nearly.

Shapes: N rows, P parts, D embedding dimension.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from embedx.heartbeat import SILENT, Heartbeat
from embedx.store.reading.reader import Store
from embedx.vectors.countdown import Countdown
from embedx.vectors.output_place import check_outside
from embedx.vectors.pairs.close_pairs import Best, close_pairs
from embedx.vectors.pairs.duplicates_config import DuplicatesConfig
from embedx.vectors.pairs.duplicates_result import EDGES, THRESHOLDS, AtThreshold, Bin, DuplicatesResult, PairOfParts
from embedx.vectors.pairs.duplicates_table import duplicates_table, is_equal
from embedx.vectors.pairs.neighbour_facts import NeighbourFacts, best_of
from embedx.vectors.pairs.sides import Sides
from embedx.vectors.pairs.stars import Stars
from embedx.vectors.pairs.tiles import Tile, UnitBlocks, pairs_of_blocks, tiles
from embedx.vectors.table_output import write_table
from embedx.vectors.vector_rows import VectorRows

_MANY_TILES = 4
"""The number of tiles from which on the time is estimated, by a tile that is computed for that alone."""
_NONE_MET = -1.5
"""The similarity below which a row has met no other row."""


def duplicates(
    stores: Sequence[Store], config: DuplicatesConfig, heartbeat: Heartbeat = SILENT, *, device: torch.device
) -> DuplicatesResult:
    """Groups the rows of a store that are duplicates, or finds those that two splits or stores have in common.

    Two rows are close if their inputs have equal bytes (by the sha256 in the index; then their similarity is 1), or if
    the cosine similarity of their vectors is at least the threshold, but for 1e-9. That is decided in float64 where
    float32 leaves a doubt, so that a brute-force comparison finds the same pairs. Rows of zeros, and those with NaN or
    infinity, are compared by their bytes alone.

    Groups are stars, never chains: the rows are gone through in plan order (of the splits in the order in which they
    were given); a row that is no one's member yet becomes a representative, and the later rows that are close to it and
    not yet members become its members. Two splits or stores, A and B, are compared with each other alone: each row of A
    is a representative, and a row of B is a member of the first of them that it is close to.

    Args:
        stores: The store; or two of the same recipe, of which the second's rows are compared with the first's alone.
        config: The settings. Its `out` is written once all is found.
        heartbeat: The receiver of progress.
        device: The device that compares.

    Returns:
        The groups as a table, and how many rows have neighbours at which similarity. The same stores, settings, device
        and number of threads give the same result; nothing is removed from a store.

    Raises:
        ConfigError: If the settings are wrong or don't fit the stores, or two stores can't be compared.
        StoreReplacedError: If another store takes the place of one.
        StoreError: If a store is damaged.
    """
    config.validate()
    check_outside("--out", config.out, *stores)
    heartbeat.say("looking through the rows")
    return _found(stores, Sides.open(stores, config, heartbeat), config, device, heartbeat)


def duplicates_among(
    rows: VectorRows,
    threshold: float,
    heartbeat: Heartbeat = SILENT,
    *,
    device: torch.device,
    see: Callable[[Tile, Best], None] | None = None,
) -> DuplicatesResult:
    """Groups some rows of a store that are duplicates, as `duplicates` does.

    Args:
        rows: The rows, split by split, with the columns `path`, `bytes` and `sha256`.
        threshold: The smallest cosine similarity of near duplicates.
        heartbeat: The receiver of progress.
        device: The device that compares.
        see: A function that is called with each tile of similarities, so that one pass serves several ends.
    """
    config = DuplicatesConfig(threshold=threshold, name=rows.name)
    return _found([rows.store], Sides.among(rows), config, device, heartbeat, see)


def _found(
    stores: Sequence[Store],
    sides: Sides,
    config: DuplicatesConfig,
    device: torch.device,
    heartbeat: Heartbeat,
    see: Callable[[Tile, Best], None] | None = None,
) -> DuplicatesResult:
    """Compares the rows of sides."""
    started = time.perf_counter()
    blocks = UnitBlocks(sides.rows, device)
    heartbeat.say(f"reading {blocks.count:,} rows")
    has_direction = blocks.has_direction()
    stars = Stars(sides.codes, sides.apart)
    facts = NeighbourFacts(sides.part_of, len(sides.parts), device)
    _compare(blocks, sides, config.threshold, stars, facts, heartbeat, see)
    heartbeat.say("listing the groups")
    table = duplicates_table(stars.representative, sides, blocks, config.keep)
    if config.out is not None:
        write_table(table if len(stores) > 1 else table.drop(["store"]), config.out)
    nearest = facts.nearest[(has_direction & (facts.nearest > _NONE_MET)) | (facts.nearest == 1)]
    is_member = stars.representative != np.arange(blocks.count)
    part_of, has_duplicate_in = sides.part_of, facts.has_duplicate_in
    return DuplicatesResult(
        stores=tuple(store.path for store in stores),
        name=config.name,
        threshold=config.threshold,
        between=config.between,
        parts=sides.parts,
        rows=blocks.count,
        without_direction=int((~has_direction).sum()),
        groups=len(np.unique(stars.representative[is_member])),
        members=int(is_member.sum()),
        equal=int(is_equal(sides.codes, stars.representative)[is_member].sum()),
        pairs=tuple(
            PairOfParts(sides.parts[a], sides.parts[b], int(has_duplicate_in[part_of == a, b].sum()))
            for a, b in sides.compared
        ),
        leaked=int((has_duplicate_in & (part_of[:, None] != np.arange(len(sides.parts)))).any(axis=1).sum()),
        histogram=_histogram(nearest),
        at_thresholds=tuple(AtThreshold(each, int((nearest >= each).sum())) for each in THRESHOLDS),
        table=table,
        out=config.out,
        seconds=time.perf_counter() - started,
    )


def _compare(
    blocks: UnitBlocks,
    sides: Sides,
    threshold: float,
    stars: Stars,
    facts: NeighbourFacts,
    heartbeat: Heartbeat,
    see: Callable[[Tile, Best], None] | None,
) -> None:
    """Goes through all tiles, and then through the equal bytes."""
    pairs = pairs_of_blocks(blocks, sides.border)
    cells = [len(blocks.blocks[a]) * len(blocks.blocks[b]) for a, b in pairs]
    countdown = Countdown(heartbeat, f"comparing {blocks.count:,} rows", sum(cells))
    if len(pairs) >= _MANY_TILES:
        countdown.estimate(_seconds_of_tile(blocks, pairs[0]) * sum(cells) / cells[0])
    for tile, size in zip(tiles(blocks, pairs), cells, strict=True):
        best = best_of(tile.similarities)
        facts.see(tile, best)
        if see is not None:
            see(tile, best)
        close = close_pairs(tile, threshold, blocks.dim, blocks.exact, best)
        if close is not None:
            facts.add(close)
        if tile.row == tile.column:
            stars.settle(tile.row, tile.row + len(tile.similarities), close)
        elif close is not None:
            stars.join(close)
        countdown.add(size)
    stars.finish()
    facts.add_equal_bytes(sides.codes, sides.compared)


def _seconds_of_tile(blocks: UnitBlocks, pair: tuple[int, int]) -> float:
    """Measures one tile, after another one that warms up memory and threads."""
    found = tiles(blocks, [pair, pair])
    float(best_of(next(found).similarities)[0][0])  # waits for the device
    started = time.perf_counter()
    float(best_of(next(found).similarities)[0][0])
    return time.perf_counter() - started


def _histogram(nearest: NDArray[np.float32]) -> tuple[Bin, ...]:
    edges = [-1.0, *EDGES, 1.0]
    places = np.bincount(np.searchsorted(EDGES, nearest, side="right"), minlength=len(EDGES) + 1).tolist()
    return tuple(Bin(low, high, rows) for (low, high), rows in zip(itertools.pairwise(edges), places, strict=True))
