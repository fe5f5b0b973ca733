"""The contact sheet of a search: one page of HTML with the pictures of the queries and of their neighbours."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from embedx.arrow import concat
from embedx.data.sources.base import as_text
from embedx.paths import expand_path, is_url
from embedx.run.thumbnails import COLUMNS, thumbnails
from embedx.store.reading.reader import Store
from embedx.terminal import one_line
from embedx.vectors.searching.search import Search
from embedx.vectors.searching.search_queries import Queries
from embedx.vectors.searching.search_result import Answer

MOST_PICTURES = 2000
"""The number of pictures up to which each is shown; they take about 3 kB each."""
_PIXELS = 128
_TEXTS = ("key", "path", "group", "sha256")
_TEMPLATE = Path(__file__).with_suffix(".html")


class _Shown(NamedTuple):
    """A picture on the sheet."""

    uri: str | None
    """The picture as a data URI; None if there is none."""
    fault: str | None
    """The reason why there is none."""


class _Neighbour(NamedTuple):
    """A neighbour on the sheet; its texts have no controls."""

    similarity: str
    split: str
    key: str
    group: str | None
    target: int | None
    picture: _Shown | None


class _Query(NamedTuple):
    """A query on the sheet; its name has no controls."""

    name: str
    picture: _Shown | None
    """The query's picture; None if it is no image."""
    found: list[_Neighbour]


def contact_sheet(searched: Search, queries: Queries, answers: Sequence[Answer]) -> bytes:
    """Returns a page of HTML that needs no other file, no script and no network.

    The inputs are read again. One that is gone, or has changed since, is grey and says so.

    Args:
        searched: The rows that were searched, which have the columns that `thumbnails` needs.
        queries: The queries of the search.
        answers: The answers to the queries, in their order.
    """
    import jinja2  # takes 50 ms

    of_queries, of_rows = _pictures(searched, queries, answers)
    shown = [
        _Query(
            one_line(answer.query),
            of_queries.get(place),
            [
                _Neighbour(
                    f"{each.similarity:.4f}",
                    one_line(each.split),
                    one_line(each.key),
                    None if each.group is None else one_line(each.group),
                    each.target,
                    of_rows.get(each.number),
                )
                for each in answer.neighbours
            ],
        )
        for place, answer in enumerate(answers)
    ]
    store, rows = searched.rows.store, len(searched.rows)
    backbone = store.recipe.get("backbone") or "an unknown backbone"
    about = f"{searched.config.name} of {backbone}, {rows:,} rows searched, {searched.config.k} neighbours at most"
    if searched.config.where is not None:
        about += f", where {searched.config.where}"
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text())
    page = template.render(
        title=one_line(f"search in {store.path.absolute().name}"), about=one_line(about), queries=shown
    )
    return page.encode()


def _pictures(
    searched: Search, queries: Queries, answers: Sequence[Answer]
) -> tuple[dict[int, _Shown], dict[int, _Shown]]:
    """Returns the pictures of the queries by their places, and those of neighbours by their numbers."""
    store = searched.rows.store
    numbers = list(dict.fromkeys(each.number for answer in answers for each in answer.neighbours))
    places, tables = [], []
    for place, (path, row) in enumerate(zip(queries.paths, queries.rows, strict=True)):
        table = _row_of_store(store, row) if row else _row_of_file(path) if path else None
        if table is not None:
            places.append(place)
            tables.append(table)
    tables.append(searched.rows.table.select(COLUMNS).take(pa.array(numbers, pa.int64())))
    table = concat(tables)
    shown = _shown(store, table.slice(0, MOST_PICTURES))
    pictures = [*shown, *[_Shown(None, f"only {MOST_PICTURES:,} pictures are shown")] * (len(table) - MOST_PICTURES)]
    of_queries = dict(zip(places, pictures, strict=False))
    return of_queries, dict(zip(numbers, pictures[len(places) :], strict=True))


def _shown(store: Store, table: pa.Table) -> Iterator[_Shown]:
    for picture in thumbnails(store, table, _PIXELS):
        data = picture.data
        uri = None if data is None else f"data:image/webp;base64,{base64.b64encode(data).decode()}"
        yield _Shown(uri, None if picture.fault is None else one_line(picture.fault))


def _row_of_store(store: Store, row: tuple[str, str]) -> pa.Table:
    split, key = row
    table = store.index(split, COLUMNS)
    return table.filter(pc.equal(table["key"], key)).slice(0, 1)


def _row_of_file(name: str) -> pa.Table | None:
    """Returns a file as a row of an index, of which the file is what the row says; None if it is no local file."""
    try:
        path = Path(os.path.abspath(expand_path(name)))
        if is_url(name) or not path.is_file():
            return None
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        stat = path.stat()
    except (OSError, ValueError):
        return None
    texts = {"key": as_text(os.fsencode(name)), "path": as_text(os.fsencode(path)), "sha256": sha256}
    values = {**texts, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    schema = pa.schema([(column, pa.string() if column in _TEXTS else pa.int64()) for column in COLUMNS])
    return pa.table({column: [values.get(column)] for column in COLUMNS}, schema=schema)
