"""`embedx repair`: writes a store's manifest anew where it is gone or damaged."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from embedx.cli.options import DebugOption, JsonOption, StoreArgument, plainly
from embedx.cli.output import STDERR, print_json, print_line
from embedx.paths import store_path
from embedx.values import count_text

EXAMPLES = """\
# manifest.json is gone or damaged
embedx repair store
# shards are damaged: remove their units, for the next extract
embedx repair store --drop-damaged"""
"""The examples on the help page."""


def command(
    path: StoreArgument,
    like: Annotated[
        Any,
        typer.Option(
            "--like",
            metavar="STORE",
            help="Store of the same settings, to take the recipe from. Default: the index tables, which have it too.",
            parser=plainly(store_path),
        ),
    ] = None,
    drop_damaged: Annotated[
        bool, typer.Option("--drop-damaged", help="Remove damaged units, so that the next extract computes them again.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write a store's manifest.json anew from its index tables and shards, if it is gone or damaged.

    Every file is checked by its sha256. Nothing is removed without --drop-damaged. Prints one line per unit that was
    removed.
    """
    from embedx.store.writing.repair import repair

    done = repair(path, like=like, drop_damaged=drop_damaged)
    if as_json:
        print_json(dataclasses.asdict(done) | {"store": str(done.store)}, indent=None)
    else:
        for line in done.damaged:
            print_line(line)
    if done.manifest != "whole":
        STDERR.print(done.manifest, soft_wrap=True)
    kept = f"{count_text(done.units, 'unit')} with {count_text(done.rows, 'row')}"
    if not done.wrote:
        STDERR.print(f"{path} has {kept}, all as they were written: nothing to repair", soft_wrap=True)
        return
    todo = "tells whether inputs are missing" if done.complete else "computes what is missing"
    STDERR.print(
        f"{path}: the manifest was written anew, for {kept}; the same `embedx extract` as before {todo}", soft_wrap=True
    )
