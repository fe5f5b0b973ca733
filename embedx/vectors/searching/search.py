"""`embedx search`: the rows of a store that are most similar to queries, with their inputs.

Shapes: Q queries, D embedding dimension.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from embedx.heartbeat import SILENT, Heartbeat
from embedx.store.reading.reader import Store
from embedx.vectors.indexing.ann_file import AnnIndex, open_ann_index
from embedx.vectors.indexing.ann_search import approximate_nearest
from embedx.vectors.searching.nearest import Nearest, nearest
from embedx.vectors.searching.search_config import SearchConfig
from embedx.vectors.searching.search_queries import Queries
from embedx.vectors.searching.search_result import Answer, Neighbour
from embedx.vectors.vector_rows import VectorRows, open_rows

_COLUMNS = ("path", "group", "target")


@dataclasses.dataclass(frozen=True)
class Search:
    """The rows of a store that are searched."""

    rows: VectorRows
    """The N rows, with the columns that neighbours have."""
    config: SearchConfig
    index: AnnIndex | None = None
    """The index to search by; None compares each row."""

    @classmethod
    def open(cls, store: Store, config: SearchConfig, columns: Sequence[str] = ()) -> Search:
        """Opens the rows that the settings name; the shards' sha256 is not checked, as `embedx verify` does that.

        Args:
            store: The store; of one that is not complete, the rows that are committed are searched.
            config: The settings of the search.
            columns: The names of further columns of the index to read.

        Raises:
            ConfigError: If there is no such split or tensor, the condition can't be met or understood, or there are no
                rows; or the search is approximate, and there is no index of these rows as they are now.
            StoreError: If a file is damaged.
        """
        index = open_ann_index(store, config.name, config.split, config.index) if config.approximate else None
        splits = config.split if index is None else index.facts.splits
        columns = list(dict.fromkeys([*_COLUMNS, *columns]))
        rows = open_rows(store, splits, name=config.name, where=config.where, columns=columns, check=False)
        return cls(rows, config, index)

    def answers(
        self, queries: Queries, *, device: torch.device | None = None, heartbeat: Heartbeat = SILENT
    ) -> Iterator[Answer]:
        """Yields the answer to each query, in their order, with ties in the order of the rows' numbers.

        It is exact, unless there is an index to search by.

        Args:
            queries: The Q queries, whose vectors are of the store's length, finite, and not zeros.
            device: The device of the products; None takes the CPU. The answers don't depend on it.
            heartbeat: The receiver of progress.

        Raises:
            StoreReplacedError: If another store has taken this one's place.
            StoreError: If a file is damaged.
        """
        left_out = None if self.config.with_self else self.numbers_of(queries.rows)
        k, vectors = self.config.k, queries.vectors
        if self.index is None:
            found = nearest(self.rows, vectors, k, left_out=left_out, device=device, heartbeat=heartbeat)
        else:
            heartbeat.say("searching by the index")
            found = approximate_nearest(self.rows, self.index, vectors, k, left_out=left_out)
        for name, each in zip(queries.names, found, strict=True):
            yield self.answer(name, each)

    def answer(self, name: str, found: Nearest) -> Answer:
        """Returns the rows that were found for the query of this name, with their inputs."""
        numbers, similarities = found.numbers.tolist(), found.similarities.tolist()
        columns = ("split", "key", *_COLUMNS)
        rows = self.rows.table.select(columns).take(pa.array(numbers, pa.int64())).to_pylist()
        places = zip(rows, similarities, numbers, strict=True)
        return Answer(name, tuple(Neighbour(**row, similarity=each, number=number) for row, each, number in places))

    def numbers_of(self, rows: Sequence[tuple[str, str] | None]) -> list[int | None]:
        """Returns the number of the row of each split and key among those searched; None for one that is not there."""
        if not any(rows):
            return [None] * len(rows)
        keys = pa.array([row[1] for row in rows if row is not None], pa.string())
        table = self.rows.table.select(["split", "key"])
        places = np.flatnonzero(pc.is_in(table["key"], value_set=keys).to_numpy())
        found = table.take(pa.array(places)).to_pylist()
        numbers = {(row["split"], row["key"]): int(place) for row, place in zip(found, places, strict=True)}
        return [None if row is None else numbers.get(row) for row in rows]
