"""`embedx index`: builds an approximate index for stores that are too large for exact search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedx.cli.options import (
    ConfigFileOption,
    DebugOption,
    JsonOption,
    QuietOption,
    StoreArgument,
    with_config_options,
)
from embedx.cli.output import STDERR, STDOUT, facts_table, print_json
from embedx.heartbeat import Heartbeat
from embedx.system.torch_imports import import_torchvision
from embedx.values import size_text
from embedx.vectors.indexing.ann_config import IndexConfig

if TYPE_CHECKING:
    from embedx.vectors.indexing.ann_build import IndexResult


EXAMPLES = """\
# then `embedx search store photo.jpg --approximate` uses it
embedx index store
# a smaller one, of 32 bytes a row
embedx index store --factory IVF1024,PQ32np --overwrite"""
"""The examples on the help page."""


@with_config_options(IndexConfig)
def command(
    path: StoreArgument,
    config: IndexConfig,
    config_file: ConfigFileOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Build an approximate index for stores that are too large for exact search.

    `embedx search --approximate` uses it. Its recall is measured against exact search on 1,000 rows. It is of the store
    as it is now: once that changes, build it again. Needs the extra faiss.
    """
    config.validate()
    with Heartbeat(STDERR) as heartbeat:
        import_torchvision()
        from embedx.api.store_verbs import index_by

        result = index_by(path, config, heartbeat)
    facts = result.index.facts
    if not result.built:
        STDERR.print(f"{result.index.path}: up to date", markup=False, soft_wrap=True)
    if facts.factory == "Flat" and config.factory is None:
        STDERR.print(f"of {facts.rows:,} rows exact search is as quick: this index compares each row too")
    if facts.recall < facts.recall_wanted:
        STDERR.print(
            f"recall is {facts.recall:.4f}, and --recall is {facts.recall_wanted:g}; another --factory, such as one "
            "with Flat or SQ8, reaches more",
            style="bold magenta",
            soft_wrap=True,
        )
    print_json(result.to_json(), indent=None) if as_json else _print(result)


def _print(result: IndexResult) -> None:
    facts = result.index.facts
    depth = "" if facts.depth is None else f", {facts.depth.name} {facts.depth.value}"
    rows = f"{facts.rows:,}"
    if facts.indexed < facts.rows:
        rows += f", of which {facts.rows - facts.indexed:,} can't be found: all zeros, NaN or infinity"
    STDOUT.print(
        facts_table(
            {
                "store": str(result.store),
                "index": str(result.index.path),
                "splits": ", ".join(facts.splits),
                "rows": rows,
                "factory": facts.factory + depth,
                "size": size_text(facts.bytes),
                "recall@10": f"{facts.recall:.4f}, of {facts.recall_rows:,} rows",
            }
        )
    )
