"""`embedx backbones`."""

from __future__ import annotations

from typing import Annotated

import typer

from embedx.cli.output import print_json, print_line


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with weights names.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """List the backbones."""
    from embedx.models.backbones import backbone_names, weights_names

    if as_json:
        print_json([{"name": name, "weights": weights_names(name)} for name in backbone_names()])
    else:
        for name in backbone_names():
            print_line(name)
