"""`embedx backbones`."""

from __future__ import annotations

from embedx.cli.output import DebugOption, JsonOption, print_json, print_line


def command(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the backbones; as JSON, with their weights' names."""
    from embedx.models.backbones.torchvision import backbone_names, weights_names

    if as_json:
        print_json([{"name": name, "weights": weights_names(name)} for name in backbone_names()])
    else:
        for name in backbone_names():
            print_line(name)
