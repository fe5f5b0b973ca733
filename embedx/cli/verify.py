"""`embedx verify`: checks a store against itself and, on demand, against its inputs."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedx.cli.options import DebugOption, JsonOption, StoreArgument
from embedx.cli.output import STDERR, print_json, print_line
from embedx.errors import ConfigError, StoreError
from embedx.paths import BucketPath, StorePath
from embedx.store.format.fetched import OF_ALL_STORES
from embedx.system.torch_imports import import_torchvision
from embedx.values import count_text

if TYPE_CHECKING:
    from embedx.run.row_checker import Recomputation


EXAMPLES = """\
# has anything changed since the store was written?
embedx verify store
# and are the numbers those of the images? asks 100 rows
embedx verify store --recompute 100"""
"""The examples on the help page."""


def command(
    path: StoreArgument,
    recompute: Annotated[
        int | None,
        typer.Option("--recompute", metavar="N", min=1, help="Also embed N random rows again, and compare them."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", help="Random seed that chooses the rows. Default: a new one each time."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="DEVICE", help="Device to recompute on. Default: the recipe's, if available."),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Let --recompute run the code or the program that is the store's backbone.")
    ] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            metavar="NUMBER",
            help="Largest allowed difference of a recomputed number, relative to its row's largest absolute value. "
            "Default: 1e-4 for fp32, 1e-2 for tf32 and fp16, 5e-2 for bf16; at least 2e-3 if stored as float16, "
            "2e-2 as bfloat16.",
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Check a store: checksums, shapes, row identities, sums, NaN rows.

    These checks find all that has changed since the store was written. --recompute also finds numbers that were wrong
    from the start, as it embeds some rows again. Prints one line per fault, and exits with 1 if there is one.
    """
    if recompute is None and (seed, device, tolerance, trust) != (None, None, None, False):
        raise ConfigError("--seed, --device, --tolerance and --trust are for recomputing rows; give --recompute N too")
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise ConfigError(f"--tolerance is {tolerance:g}; give a number of at least 0, such as 1e-4")
    from embedx.store.reading.verify import NOT_COMPLETE, NOT_FINITE, verify

    faults = []
    for fault in verify(path):
        faults.append(fault)
        if not as_json:
            print_line(fault)
    found = None
    if recompute is not None and faults in ([], [NOT_COMPLETE]):
        import_torchvision()
        from embedx.run.recompute import recompute as recompute_rows

        found = recompute_rows(
            path, recompute, seed=seed, device=device, trust=trust, tolerance=tolerance, console=STDERR
        )
    _print(path, faults, found, as_json=as_json)
    if found is not None:
        _judge(path, found)
    if faults == [NOT_COMPLETE]:
        raise StoreError(f"{path} has no damage, but the run that writes it has not finished")
    if faults and all(NOT_FINITE in fault for fault in faults):
        raise StoreError(
            f"{path} has no damage, but rows that are not finite, as they were computed; `embedx extract --overwrite` "
            "rejects their inputs, each with its reason, and with --allow-nonfinite stores them as sound"
        )
    if faults:
        raise StoreError(
            f"{path} has {count_text(len(faults), 'fault')}; run the same `embedx extract` again "
            "with --verify-kept, which computes the rows of damaged files again"
        )
    STDERR.print(f"{path} is whole", soft_wrap=True)


def _print(path: StorePath, faults: list[str], found: Recomputation | None, *, as_json: bool) -> None:
    """Prints the report as JSON, or the lines that recomputing adds to those of the faults."""
    wrong = [*found.faults, *found.lost_inputs] if found is not None else []
    if as_json:
        report: dict[str, Any] = {"store": str(path), "ok": not faults and not wrong, "faults": faults}
        if isinstance(path, BucketPath):
            report["fetched"] = OF_ALL_STORES.sum()._asdict()
        print_json(report if found is None else report | {"recomputed": dataclasses.asdict(found)}, indent=None)
    else:
        for line in wrong:
            print_line(line)


def _judge(path: StorePath, found: Recomputation) -> None:
    """Prints the result of recomputing, and raises a StoreError if the store holds other numbers."""
    largest = "not finite" if found.largest_difference is None else f"{found.largest_difference:.3g}"
    STDERR.print(
        f"{count_text(found.rows, 'row')} recomputed: largest difference {largest} (allowed {found.allowed:g}), "
        "relative to a row's largest absolute value",
        soft_wrap=True,
    )
    if found.faults:
        raise StoreError(
            f"{path}: {count_text(len(found.faults), 'fault')} among {count_text(found.rows, 'recomputed row')}; if "
            "other versions or another processor explain the differences, allow more with --tolerance, otherwise "
            "write the store anew with `embedx extract --overwrite`"
        )
    if found.lost_inputs:
        raise StoreError(
            f"{path}: {count_text(len(found.lost_inputs), 'row')} can't be judged, as the inputs are gone or have "
            "changed since; all others are what their inputs give"
        )
