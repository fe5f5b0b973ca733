"""`embedx info`: shows what is in a store."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedx.cli.options import DebugOption, JsonOption, StoreArgument
from embedx.cli.output import STDOUT, facts_table, group_text, numbers_table, print_json, print_line
from embedx.values import count_text, size_text

if TYPE_CHECKING:
    from embedx.store.reading.reader import Store

_COUNTS = ("inputs", "rows", "rejected", "unavailable")


EXAMPLES = """\
# what is in a store
embedx info store
# why inputs have no row
embedx info store --rejected"""
"""The examples on the help page."""


def command(
    path: StoreArgument,
    rejected: Annotated[bool, typer.Option("--rejected", help="List the rejected inputs instead.")] = False,
    unavailable: Annotated[bool, typer.Option("--unavailable", help="List the unavailable inputs instead.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show what is in a store: its recipe, and its splits and groups with inputs, rows and sizes."""
    from embedx.store.reading.attempts import start_anew
    from embedx.store.reading.reader import Store

    if rejected or unavailable:
        statuses = {name for name, is_asked in (("rejected", rejected), ("unavailable", unavailable)) if is_asked}
        _print_without_rows(start_anew(lambda: _without_rows(Store.open(path), statuses)), as_json=as_json)
        return
    description = start_anew(lambda: _description(Store.open(path)))
    print_json(description) if as_json else _print_summary(description)


def _description(store: Store) -> dict[str, Any]:
    """Returns the manifest's facts, with each split's totals and groups as they are on disk."""
    from embedx.store.format.hardware import distinct
    from embedx.store.reading.kept import count_kept

    manifest = store.manifest
    splits: dict[str, dict[str, Any]] = {}
    groups: dict[str, Counter[str | None]] = {}
    for unit in store.units.values():
        split = splits.setdefault(unit.split, dict.fromkeys((*_COUNTS, "bytes"), 0))
        for name in _COUNTS:
            split[name] += getattr(unit, name)
        for shard in unit.shards:
            split["bytes"] += shard.bytes
            if manifest.plan.grouped:
                groups.setdefault(unit.split, Counter())[shard.group] += shard.rows
    planned = sum(split.inputs for split in manifest.plan.splits.values())
    for name, split in splits.items():
        split["groups"] = [{"group": group, "rows": rows} for group, rows in groups.get(name, Counter()).items()]
    return {
        "path": str(store.path),
        "complete": manifest.complete,
        "kept": None if manifest.complete or not planned else {"inputs": count_kept(store), "of": planned},
        "fingerprint": manifest.fingerprint,
        "recipe": manifest.recipe.to_json(),
        "group_key": manifest.plan.group_key,
        "splits": splits,
        "environment": manifest.environment.to_json(),
        "hardware": distinct(store.units.values()),
        "timings": manifest.timings,
    }


def _print_summary(description: dict[str, Any]) -> None:
    recipe = description["recipe"]
    weights = recipe.get("weights")
    named = weights.values() if isinstance(weights, dict) else [weights] if weights else []
    facts = {
        "store": description["path"],
        "complete": "yes" if description["complete"] else _unfinished_text(description["kept"]),
        "backbone": recipe.get("backbone", "not stated"),
        "weights": " ".join(str(value)[:32] for value in named) or "not stated",
        "numbers": " ".join(str(recipe[name]) for name in ("precision", "dtype", "device") if name in recipe),
        "rate": f"{description['timings'].get('images_per_second', 0):.0f} images/s",
    }
    for environment in description["hardware"]:
        units = count_text(environment.pop("units"), "unit")
        facts[f"hardware of {units}"] = ", ".join(f"{name} {value}" for name, value in environment.items())
    STDOUT.print(facts_table(facts))
    has_unavailable = any(split["unavailable"] for split in description["splits"].values())
    counts = _COUNTS if has_unavailable else _COUNTS[:-1]
    table = numbers_table("split", "group", *counts, "size")
    for name, split in description["splits"].items():
        numbers = [str(split[column]) for column in counts]
        table.add_row(name, "", *numbers, size_text(split["bytes"]))
        for group in split["groups"]:
            table.add_row("", group_text(group["group"]), "", str(group["rows"]), *[""] * (len(counts) - 1))
    STDOUT.print(table)


def _unfinished_text(kept: dict[str, int] | None) -> str:
    progress = f", {kept['inputs']} of {kept['of']}" if kept is not None else ""
    return f"no{progress}: run the same command again to finish it"


def _without_rows(store: Store, statuses: set[str]) -> list[dict[str, Any]]:
    """Returns the inputs with one of these statuses, and why they have no row."""
    rows = store.index().select(["split", "key", "path", "reason", "status"]).to_pylist()
    return [row for row in rows if row.pop("status") in statuses]


def _print_without_rows(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            print_line(*(str(row[name]) for name in ("split", "path", "reason")))
