"""`embedx export`: writes a store's vectors and keys to the files of other programs."""

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
from embedx.cli.output import STDERR, print_json, print_line
from embedx.heartbeat import Heartbeat
from embedx.system import signals
from embedx.vectors.exporting.export_config import ExportConfig

if TYPE_CHECKING:
    pass


EXAMPLES = """\
# a Parquet file per split, with the keys and the vectors
embedx export store --out parquet
# half as large, of one split, and with one column of the index
embedx export store --split val --columns path --dtype float16 --out half
# a database that LanceDB opens
embedx export store --to lance --normalize --out lance"""
"""The examples on the help page."""


@with_config_options(ExportConfig)
def command(
    path: StoreArgument,
    config: ExportConfig,
    config_file: ConfigFileOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Write the vectors of a store, with their keys, to the files of other programs.

    Prints the path of the folder, which appears when it is whole. The same store and settings give the same bytes.
    """
    config.validate()
    signals.advice = "; nothing is left of it, and the same command begins anew"
    with Heartbeat(STDERR) as heartbeat:
        from embedx.api.store_verbs import export_by

        result = export_by(path, config, heartbeat)
    for note in result.notes:
        STDERR.print(note, soft_wrap=True)
    print_json(result.to_json(), indent=None) if as_json else print_line(str(result.out))
