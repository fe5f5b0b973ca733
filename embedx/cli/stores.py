"""`embedx info` and `embedx verify`."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedx.cli.output import (
    STDERR,
    STDOUT,
    DebugOption,
    JsonOption,
    count_text,
    facts_table,
    group_text,
    numbers_table,
    one_line,
    print_json,
    print_line,
)
from embedx.errors import ConfigError, StoreError
from embedx.system.torch_imports import import_torchvision
from embedx.values import size_text

if TYPE_CHECKING:
    from embedx.run.recompute import Recomputation

StoreArgument = Annotated[Path, typer.Argument(metavar="STORE", help="A folder that `embedx extract` wrote.")]


def info(
    path: StoreArgument,
    rejected: Annotated[bool, typer.Option("--rejected", help="List the rejected inputs instead.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show what is in a store."""
    from embedx.store.reading.reader import Store

    store = Store.open(path)
    if rejected:
        _print_rejected(store, as_json=as_json)
    elif as_json:
        print_json(_description(store))
    else:
        _print_summary(_description(store))


def verify(
    path: StoreArgument,
    recompute: Annotated[
        int | None,
        typer.Option(
            "--recompute",
            metavar="N",
            min=1,
            help="Embed N random rows again as well, from their inputs, and compare them.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of the choice of rows. Default: another each time.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Where to recompute. Default: the recipe's, if it is there.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Let --recompute run a backbone that is code, or a program.")
    ] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            help="What --recompute allows a number to differ by, in parts of its row's largest. "
            "Default: 1e-4 for fp32, 1e-2 for tf32 and fp16, 5e-2 for bf16; at least 2e-3 if stored as float16, "
            "2e-2 as bfloat16.",
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Check a store against itself: checksums, shapes, row identities, sums, NaN rows.

    With --recompute also against its inputs, which tells what no checksum can: whether the numbers are those that
    they give. Prints one line per fault, and exits with 1 if there is one.
    """
    if recompute is None and (seed, device, tolerance, trust) != (None, None, None, False):
        raise ConfigError("--seed, --device, --tolerance and --trust are for recomputing rows; give --recompute N too")
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise ConfigError(f"--tolerance is {tolerance:g}; give a number of at least 0, such as 1e-4")
    # Before torch is imported: threads that spin while they wait would steal the decoders' cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from embedx.store.reading.verify import NOT_COMPLETE
    from embedx.store.reading.verify import verify as faults_of

    faults = []
    for fault in faults_of(path):
        faults.append(fault)
        if not as_json:
            print_line(fault)
    damaged = faults not in ([], [NOT_COMPLETE])
    found = None
    if recompute is not None and not damaged:
        import_torchvision()
        from embedx.run.recompute import recompute as recomputed

        options: dict[str, Any] = {"seed": seed, "device": device, "trust": trust, "tolerance": tolerance}
        found = recomputed(path, recompute, **options, console=STDERR)
    wrong = [*found.faults, *found.lost_inputs] if found is not None else []
    if as_json:
        report: dict[str, Any] = {"store": str(path), "ok": not faults and not wrong, "faults": faults}
        print_json(report if found is None else report | {"recomputed": dataclasses.asdict(found)}, indent=None)
    else:
        for line in wrong:
            print_line(one_line(line))
    if found is not None:
        _judge(path, found)
    if faults == [NOT_COMPLETE]:
        raise StoreError(f"{path} has no damage, but the run that writes it has not come to its end")
    if faults:
        raise StoreError(
            f"{path} has {count_text(len(faults), 'fault')}; remove the damaged shards and index tables, and run the "
            "same `embedx extract` again, which writes what is missing"
        )
    STDERR.print(f"{path} is whole", soft_wrap=True)


def _judge(path: Path, found: Recomputation) -> None:
    """Tells what came of recomputing, and raises an error if that is not what the store holds."""
    largest = "not finite" if found.largest_difference is None else f"{found.largest_difference:.3g}"
    STDERR.print(
        f"{count_text(found.rows, 'row')} recomputed: largest difference {largest} (allowed {found.allowed:g}), in "
        "parts of a row's largest number",
        soft_wrap=True,
    )
    if found.faults:
        raise StoreError(
            f"{path} has {count_text(len(found.faults), 'fault')} that recomputing shows, among {found.rows} rows; if "
            "versions or another kind of processor explain that, allow more by --tolerance, else write the store anew "
            "by `embedx extract --overwrite`"
        )
    if found.lost_inputs:
        raise StoreError(
            f"{path}: {count_text(len(found.lost_inputs), 'row')} can't be judged, as the inputs are gone or have "
            "changed since; all others are what their inputs give"
        )


def _description(store: Any) -> dict[str, Any]:
    """The manifest, with each split's totals and groups as they are on disk."""
    manifest = store.manifest
    splits: dict[str, dict[str, Any]] = {}
    groups: dict[str, Counter[str | None]] = {}
    for unit in store.units.values():
        split = splits.setdefault(unit.split, {"inputs": 0, "rows": 0, "rejected": 0, "bytes": 0})
        for name in ("inputs", "rows", "rejected"):
            split[name] += getattr(unit, name)
        for shard in unit.shards:
            split["bytes"] += shard.bytes
            if manifest.plan["group_key"] is not None:
                groups.setdefault(unit.split, Counter())[shard.group] += shard.rows
    for name, split in splits.items():
        split["groups"] = [{"group": group, "rows": rows} for group, rows in groups.get(name, Counter()).items()]
    return {
        "path": str(store.path),
        "complete": manifest.complete,
        "fingerprint": manifest.fingerprint,
        "recipe": manifest.recipe,
        "group_key": manifest.plan["group_key"],
        "splits": splits,
        "environment": manifest.environment,
        "timings": manifest.timings,
    }


def _print_summary(description: dict[str, Any]) -> None:
    recipe = description["recipe"]
    weights = recipe.get("weights")
    named = weights.values() if isinstance(weights, dict) else [weights] if weights else []
    facts = {
        "store": description["path"],
        "complete": "yes" if description["complete"] else "no: run the same command again to finish it",
        "backbone": recipe.get("backbone", "not stated"),
        "weights": " ".join(str(value)[:32] for value in named) or "not stated",
        "numbers": " ".join(str(recipe[name]) for name in ("precision", "dtype", "device") if name in recipe),
        "rate": f"{description['timings'].get('images_per_second', 0):.0f} images/s",
    }
    STDOUT.print(facts_table(facts))
    table = numbers_table("split", "group", "inputs", "rows", "rejected", "size")
    for name, split in description["splits"].items():
        numbers = [str(split[column]) for column in ("inputs", "rows", "rejected")]
        table.add_row(name, "", *numbers, size_text(split["bytes"]))
        for group in split["groups"]:
            table.add_row("", group_text(group["group"]), "", str(group["rows"]), "", "")
    STDOUT.print(table)


def _print_rejected(store: Any, *, as_json: bool) -> None:
    rows = [
        row
        for row in store.index().select(["split", "key", "path", "reason", "status"]).to_pylist()
        if row.pop("status") == "rejected"
    ]
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            print_line("\t".join(one_line(str(row[name])) for name in ("split", "path", "reason")))
