"""`embedx search`: finds the rows of a store that are most similar to images, rows or vectors."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, Self

import typer

from embedx.cli.options import (
    ConfigFileOption,
    DebugOption,
    JsonOption,
    QuietOption,
    StoreArgument,
    plainly,
    with_config_options,
)
from embedx.cli.output import STDERR, STDOUT, numbers_table, print_json
from embedx.errors import ConfigError, output_error
from embedx.heartbeat import Heartbeat
from embedx.paths import file_faults, local_path
from embedx.system.processes import start_fork_server
from embedx.system.torch_imports import import_torchvision
from embedx.terminal import one_line
from embedx.values import count_text
from embedx.vectors.searching.search_config import FEW_PATHS, SearchConfig

if TYPE_CHECKING:
    from embedx.api.searching import Asked
    from embedx.store.reading.reader import Store
    from embedx.vectors.searching.search import Search
    from embedx.vectors.searching.search_queries import Queries
    from embedx.vectors.searching.search_result import Answer


EXAMPLES = """\
# the ten images that are most like this one
embedx search store photo.jpg
# those that are like a row of the store, and the pictures of them
embedx search store --row val:cat/1.png --html found.html
# for programs: an object a line for each neighbour
embedx search store --vector queries.npy -k 1 --json"""
"""The examples on the help page."""


@with_config_options(SearchConfig)
def command(
    path: StoreArgument,
    config: SearchConfig,
    queries: Annotated[
        list[str] | None,
        typer.Argument(metavar="QUERY", help="Images to search for: paths or URLs, or - for paths on stdin."),
    ] = None,
    row: Annotated[
        list[str] | None,
        typer.Option("--row", metavar="SPLIT:KEY", help="Row of the store to search for; repeatable."),
    ] = None,
    vector: Annotated[
        list[Path] | None,
        typer.Option(
            "--vector",
            metavar="PATH",
            parser=plainly(local_path),
            help="File of numpy's (.npy) with vectors to search for, [D] or [Q, D]; repeatable.",
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", metavar="TEXT", help="Text to search for, by a model such as CLIP; repeatable."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="PATH",
            parser=plainly(local_path),
            help="File of HTML to write a contact sheet into, with the pictures of queries and neighbours.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write the contact sheet in the place of a file that is there.")
    ] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Embed queries by the code or the program that is the store's backbone.")
    ] = False,
    config_file: ConfigFileOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Find the rows of a store that are most similar to images, rows, vectors or texts.

    Queries are embedded by the store's own recipe. The search is exact: each row is compared by cosine similarity. With
    --approximate an index names the rows to compare. With --json it prints an object a line for each neighbour. The
    shards' checksums are not checked; `embedx verify` does that.
    """
    config.validate()
    if html is not None:
        ConfigError.check(file_faults("--html", html, overwrite=overwrite))
    elif overwrite:
        raise ConfigError("--overwrite is for --html; give that too")
    images = _images(queries or [])
    if not (images or row or vector or text):
        raise ConfigError("there is no query; give images, --row, --vector or --text")
    with Heartbeat(STDERR) as heartbeat:
        if len(images) > FEW_PATHS:
            start_fork_server()  # of the processes that decode them, while this one imports torch
        import_torchvision()
        from embedx.api.opened_stores import with_stores
        from embedx.api.searching import Asked

        asked = Asked(images=images, rows=row or (), files=vector or (), texts=text or ())
        search = with_stores(
            [path],
            lambda stores: _Search.begin(stores[0], config, asked, trust, html, heartbeat),
            heartbeat,
            "searched",
        )
        if (count := len(search.searched.rows)) < config.k:
            STDERR.print(f"-k is {config.k}, and {count_text(count, 'row')} are searched: all are listed")
        if (index := search.searched.index) is not None:
            STDERR.print(f"approximate: recall@10 is {index.facts.recall:.4f} ({index.facts.factory})", markup=False)
        kept = []
        for answer in search.answers:
            heartbeat.hide()
            _print_json(answer) if as_json else _print(answer)
            if html is not None:
                kept.append(answer)
        if html is not None:
            heartbeat.say("reading the pictures")
            _write_sheet(html, search, kept)


class _Search(NamedTuple):
    """A search that has begun."""

    searched: Search
    """The rows that are searched."""
    queries: Queries
    """The queries, as vectors."""
    answers: Iterator[Answer]
    """The answers, of which the first is known, and the others are found as they are asked for."""

    @classmethod
    def begin(
        cls, store: Store, config: SearchConfig, asked: Asked, trust: bool, html: Path | None, heartbeat: Heartbeat
    ) -> Self:
        """Opens the rows, embeds the queries, and finds the first answer."""
        from embedx.api.searching import compares_on, queries_of
        from embedx.run.thumbnails import COLUMNS
        from embedx.vectors.output_place import check_outside
        from embedx.vectors.searching.search import Search

        check_outside("--html", html, store)
        searched = Search.open(store, config, () if html is None else COLUMNS)
        queries = queries_of(searched, asked, trust=trust, heartbeat=heartbeat)
        answers = searched.answers(queries, device=compares_on(config), heartbeat=heartbeat)
        return cls(searched, queries, itertools.chain([next(answers)], answers))


def _write_sheet(html: Path, search: _Search, answers: list[Answer]) -> None:
    from embedx.api.contact_sheet import contact_sheet
    from embedx.store.format.atomic import write_atomic

    page = contact_sheet(search.searched, search.queries, answers)
    try:
        write_atomic(html.absolute(), page)
    except OSError as error:
        raise output_error(html, "can't be written", error, is_store=False, flag="--html") from error
    STDERR.print(f"contact sheet: {html}", soft_wrap=True)


def _images(queries: list[str]) -> list[str]:
    """Returns the paths and URLs of the queries, with those on stdin in the place of `-`."""
    return [path for query in queries for path in (_paths_on_stdin() if query == "-" else [query])]


def _paths_on_stdin() -> list[str]:
    """Reads paths, one in each line, or with a NUL behind each, as `find -print0` prints them."""
    from embedx.data.sources.stdin import paths_on_stdin

    return [os.fsdecode(path) for path in paths_on_stdin("-", "embedx search STORE -", null=None)]


def _print_json(answer: Answer) -> None:
    for neighbour in answer.to_json():
        print_json(neighbour, indent=None)


def _print(answer: Answer) -> None:
    """Prints the neighbours of a query as a table; groups and targets only if there are some."""
    found = answer.neighbours
    names = [name for name in ("group", "target") if any(getattr(each, name) is not None for each in found)]
    STDOUT.print(one_line(answer.query), style="bold", soft_wrap=True)
    table = numbers_table("similarity", "split", "key", *names)
    for each in found:
        values = [getattr(each, name) for name in names]
        texts = ["" if value is None else str(value) for value in values]
        table.add_row(f"{each.similarity:.4f}", each.split, each.key, *texts)
    STDOUT.print(table if found else "no row is similar to it")
