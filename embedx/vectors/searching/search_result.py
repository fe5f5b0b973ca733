"""The result of a search: the neighbours of each query, with their keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from embedx.paths import StorePath


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """One row near to a query."""

    split: str
    key: str
    path: str | None
    """The path or URL of the row's input; None for inputs without one."""
    group: str | None
    target: int | None
    similarity: float
    """The cosine similarity to the query, from -1 to 1."""
    number: int
    """The row's number among those that were searched, from 0, in the order of splits and shards."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """The neighbours of one query."""

    query: str
    """The query's name: an image's path, a row's `split:key`, a file of vectors with the vector's number, a text."""
    neighbours: tuple[Neighbour, ...]
    """The nearest first; of equal ones that with the lower number."""

    def to_json(self) -> Iterator[dict[str, Any]]:
        """Yields each neighbour as plain JSON values, with the query's name and its rank from 1."""
        for rank, neighbour in enumerate(self.neighbours, 1):
            yield {"query": self.query, "rank": rank, **vars(neighbour)}


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """The answers to all queries of a search."""

    store: StorePath
    fingerprint: str
    """The fingerprint of the store's recipe."""
    name: str
    """The name of the tensor that was compared."""
    rows: int
    """The number of rows that were searched."""
    answers: tuple[Answer, ...]
    """The answers, in the order of the queries."""
    recall: float | None = None
    """The share of the 10 nearest rows that the index was measured to find; None for an exact search."""

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain JSON values; each neighbour is as in the lines that the command prints."""
        answers = [{"query": answer.query, "neighbours": list(answer.to_json())} for answer in self.answers]
        return {**vars(self), "store": str(self.store), "answers": answers}
