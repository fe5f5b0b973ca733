"""`embedx backbones`: lists the names that --backbone takes."""

from __future__ import annotations

from embedx.cli.options import DebugOption, JsonOption
from embedx.cli.output import print_json, print_line
from embedx.system.torch_imports import import_torchvision

EXAMPLES = """\
# all names
embedx backbones
# with the names of their weights
embedx backbones --json"""
"""The examples on the help page."""


def command(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List torchvision's backbones by name; --json adds the names of their weights.

    --backbone also takes timm:NAME, hf:NAME, hf:FOLDER, the file of a program (.pt2, or TorchScript as .pt, .ts,
    .jit, .torchscript), your own code as package.module:factory, and none if the inputs are features.
    """
    import_torchvision()
    from embedx.models.backbones.torchvision import backbone_names, weights_names

    if as_json:
        print_json([{"name": name, "weights": weights_names(name)} for name in backbone_names()])
    else:
        for name in backbone_names():
            print_line(name)
