"""`embedx duplicates`: lists rows of a store whose inputs are the same, or nearly, and those that splits share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

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
from embedx.cli.output import STDERR, STDOUT, facts_table, numbers_table, print_json
from embedx.heartbeat import Heartbeat
from embedx.paths import store_path
from embedx.values import count_text
from embedx.vectors.pairs.duplicates_config import DuplicatesConfig

if TYPE_CHECKING:
    from embedx.vectors.pairs.duplicates_result import DuplicatesResult

_GROUPS = 5
"""The number of groups that are shown, the largest ones."""
_ROWS = 5
"""The number of rows that are shown of each of them."""
_BAR = 30

EXAMPLES = """\
# equal and nearly equal images, as a table for pandas or DuckDB
embedx duplicates store --out duplicates.parquet
# in CI: exit with 3 if an image of split val stands in split train too
embedx duplicates store --between train val --fail-on-leak
# the images of a new store that an old one has already
embedx duplicates old new --threshold 0.99"""
"""The examples on the help page."""


@with_config_options(DuplicatesConfig)
def command(
    path: StoreArgument,
    config: DuplicatesConfig,
    other: Annotated[
        Any,
        typer.Argument(
            metavar="STORE",
            help="Second store, whose rows are compared with those of the first alone.",
            parser=plainly(store_path),
        ),
    ] = None,
    config_file: ConfigFileOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Find rows whose inputs are the same, or nearly, and those that two splits or stores have in common.

    Equal bytes are found first, then all pairs of vectors with a cosine similarity of at least --threshold, exactly.
    Each row of a group is that similar to the group's first row. Nothing is removed from the store.
    """
    config.validate()
    with Heartbeat(STDERR) as heartbeat:
        from embedx.api.store_verbs import duplicates_by

        result = duplicates_by(path, other, config, heartbeat)
    print_json(result.to_json(), indent=None) if as_json else _print(result)
    if config.fail_on_leak:
        result.check_leaks()


def _print(result: DuplicatesResult) -> None:
    groups = f"{count_text(result.members, 'row')} in {count_text(result.groups, 'group')}"
    facts: dict[str, str | list[str]] = {
        "store" if len(result.stores) == 1 else "stores": [str(store) for store in result.stores],
        "compared": f"{count_text(result.rows, 'row')} by {result.name}",
        "threshold": f"{result.threshold:g}",
        "duplicates": f"{groups}, besides a representative each" if result.groups else "none",
        "of equal bytes": count_text(result.equal, "row"),
    }
    if result.without_direction:
        rows = count_text(result.without_direction, "row")
        facts["bytes alone"] = f"{rows} of zeros, NaN or infinity, compared by their bytes alone"
    if result.out is not None:
        facts["table"] = str(result.out)
    STDOUT.print(facts_table(facts))
    _print_splits(result)
    _print_nearest(result)
    _print_groups(result)


def _print_splits(result: DuplicatesResult) -> None:
    """Prints a matrix of the splits, of which the rows are those of one and the columns those of another."""
    if len(result.parts) < 2:
        return
    found = {(pair.part, pair.other): str(pair.duplicates) for pair in result.pairs}
    names = [result.name_of(part) for part in result.parts]
    table = numbers_table("split", "rows", *names, title="rows with a duplicate in")
    for part, name in zip(result.parts, names, strict=True):
        table.add_row(name, str(part.rows), *(found.get((part, other), "") for other in result.parts))
    STDOUT.print(table)


def _print_nearest(result: DuplicatesResult) -> None:
    """Prints the distribution of the similarities to the nearest neighbour, by which a threshold is chosen."""
    rows = sum(each.rows for each in result.histogram)
    most = max(each.rows for each in result.histogram)
    if not rows:
        return
    at = {each.threshold: f"{each.rows} ({each.rows / rows:.1%})" for each in result.at_thresholds}
    title = "rows by the similarity of their nearest neighbour"
    table = numbers_table("similarity", "rows", "", "at least", title=title)
    first = next(number for number, each in enumerate(result.histogram) if each.rows)
    for each in result.histogram[first:]:
        name = f"{each.low:g} to {each.high:g}" if each.low > -1 else f"below {each.high:g}"
        table.add_row(name, str(each.rows), "█" * -(-_BAR * each.rows // most), at.get(each.low, ""))
    STDOUT.print(table)


def _print_groups(result: DuplicatesResult) -> None:
    """Prints the largest groups, with their first rows."""
    import numpy as np

    if not result.groups:
        return
    starts = np.flatnonzero(np.diff(result.table["group"].to_numpy(), prepend=-1))
    sizes = np.diff(starts, append=len(result.table))
    title = "the largest groups" if len(starts) > _GROUPS else "groups"
    table = numbers_table("group", "similarity", "split", "key", "", title=title)
    for group in np.argsort(-sizes, kind="stable")[:_GROUPS].tolist():
        for place, row in enumerate(result.table.slice(starts[group], min(_ROWS, sizes[group])).to_pylist()):
            split = result.name_of(next(p for p in result.parts if (p.store, p.split) == (row["store"], row["split"])))
            similarity = "equal" if row["equal"] else f"{row['similarity']:.4f}"
            kept = "keep" if row["keep"] else ""
            table.add_row(*("", similarity) if place else (str(group), ""), split, row["key"], kept)
        if sizes[group] > _ROWS:
            table.add_row("", "", "", f"… and {sizes[group] - _ROWS} more", "")
    STDOUT.print(table)
    if result.out is None:
        STDERR.print("--out FILE lists all rows of all groups", soft_wrap=True)
