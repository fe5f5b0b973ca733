"""`embedx backbones`."""

from __future__ import annotations

from embedx.cli.output import DebugOption, JsonOption, print_json, print_line
from embedx.system.torch_imports import import_torchvision


def command(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List torchvision's backbones; as JSON, with their weights' names.

    --backbone also takes timm:NAME, hf:NAME-or-folder, a program's file (.pt2, or TorchScript: .pt, .ts, .jit,
    .torchscript), the user's own code as package.module:factory, and none, if the inputs are features.
    """
    import_torchvision()
    from embedx.models.backbones.torchvision import backbone_names, weights_names

    if as_json:
        print_json([{"name": name, "weights": weights_names(name)} for name in backbone_names()])
    else:
        for name in backbone_names():
            print_line(name)
