"""`embedx compare`: measures how far the embeddings of two stores differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedx.cli.completion import completer
from embedx.cli.options import DebugOption, JsonOption, plainly
from embedx.cli.output import STDERR, STDOUT, facts_table, numbers_table, print_json
from embedx.errors import ConfigError, EmbedxError
from embedx.paths import store_path
from embedx.values import count_text

if TYPE_CHECKING:
    from embedx.store.reading.compare import Comparison
    from embedx.store.reading.drift import Drift

_ALL = "(all)"


EXAMPLES = """\
# the same inputs before and after an upgrade
embedx compare before after
# in a script: exit with 1 if a row has drifted
embedx compare before after --max-drift 1e-4"""
"""The examples on the help page."""


def command(
    a: Annotated[
        Any,
        typer.Argument(
            metavar="A", help="First store, such as one made before an upgrade.", parser=plainly(store_path)
        ),
    ],
    b: Annotated[
        Any, typer.Argument(metavar="B", help="Second store, of the same inputs.", parser=plainly(store_path))
    ],
    name: Annotated[
        list[str] | None,
        typer.Option(
            "--name",
            metavar="NAME",
            autocompletion=completer("NAME"),
            help="Tensor to compare: embeddings or a layer; repeatable. Default: all in both stores.",
        ),
    ] = None,
    max_drift: Annotated[
        float | None,
        typer.Option("--max-drift", metavar="NUMBER", help="Exit with 1 if any row has drifted more than this."),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure how far the embeddings of two stores differ, row by row.

    The drift of a row is 1 minus the cosine similarity of its embeddings in A and B, from 0 (same direction) to 2
    (opposite). Rows are compared if they have the same split and key, and were embedded from the same bytes.
    """
    from embedx.store.reading.compare import compare

    if max_drift is not None and not max_drift >= 0:
        raise ConfigError(f"--max-drift is {max_drift:g}; give a number from 0 (the same direction) to 2")
    comparison = compare(a, b, name)
    for path in comparison.unfinished:
        STDERR.print(f"{path} is not complete: the rows committed so far are compared", soft_wrap=True)
    print_json(comparison.to_json()) if as_json else _print(comparison)
    if max_drift is not None:
        _check(comparison, max_drift)


def _check(comparison: Comparison, max_drift: float) -> None:
    for name, drift in comparison.drift.items():
        if drift.not_finite:
            raise EmbedxError(
                f"{count_text(drift.not_finite, 'row')} of {name!r} have NaN or infinity in one of the stores, which "
                f"--max-drift {max_drift:g} can't allow; `embedx verify` lists these rows"
            )
        if drift.worst is not None and drift.worst > max_drift:
            row = drift.furthest[0]
            raise EmbedxError(
                f"{name!r} of {row.key!r} in split {row.split!r} has drifted by {row.drift:.3g}, and --max-drift is "
                f"{max_drift:g}; allow more if the differences between the stores' recipes and versions explain it"
            )


def _print(comparison: Comparison) -> None:
    from embedx.store.format.differences import difference_text

    lines = [difference_text(each.name, each.a, each.b) for each in comparison.differences]
    facts: dict[str, str | list[str]] = {
        "A": str(comparison.a),
        "B": str(comparison.b),
        "A → B": lines or "nothing differs in recipe and environment",
    }
    STDOUT.print(facts_table(facts))
    inputs = numbers_table("split", "compared", "only in A", "only in B", "rejected", "changed")
    for split, overlap in comparison.overlap.items():
        inputs.add_row(split, *(str(count) for count in vars(overlap).values()))
    STDOUT.print(inputs)
    table = numbers_table("tensor", "split", "rows", "bit-equal", "median drift", "worst drift", "largest difference")
    for name, drift in comparison.drift.items():
        splits = comparison.drift_of_splits[name]
        for split, of_split in [*splits.items(), *([(_ALL, drift)] if len(splits) > 1 else [])]:
            table.add_row(name, split, *_numbers(of_split))
    STDOUT.print(table)
    for name, drift in comparison.drift.items():
        _print_furthest(name, drift)


def _numbers(drift: Drift) -> list[str]:
    numbers = (drift.median, drift.worst, drift.largest_difference)
    return [str(drift.rows), str(drift.bit_equal), *("" if each is None else f"{each:.3g}" for each in numbers)]


def _print_furthest(name: str, drift: Drift) -> None:
    if drift.not_finite:
        STDOUT.print(f"{name}: {count_text(drift.not_finite, 'row')} with NaN or infinity, left out of these numbers")
    if drift.zero:
        STDOUT.print(f"{name}: {count_text(drift.zero, 'row')} all zero in A or B; their drift counts as 1")
    if drift.furthest:
        table = numbers_table("drift", "split", "key", "path", title=f"farthest apart of {name}")
        for row in drift.furthest:
            table.add_row(f"{row.drift:.3g}", row.split, row.key, row.path or "")
        STDOUT.print(table)
