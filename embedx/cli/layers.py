"""`embedx layers`: lists the layers that --layer takes."""

from __future__ import annotations

from typing import Annotated

import typer

from embedx.cli.completion import completer, keep_layers
from embedx.cli.options import DebugOption, JsonOption, plainly
from embedx.cli.output import print_json, print_line
from embedx.paths import expand_backbone
from embedx.system.torch_imports import import_torchvision

EXAMPLES = """\
# what --layer takes for a backbone
embedx layers resnet50
# of a model that takes images of another size
embedx layers timm:vit_small_patch14_dinov2 --image-size 224"""
"""The examples on the help page."""


def command(
    backbone: Annotated[
        str,
        typer.Argument(
            metavar="BACKBONE",
            autocompletion=completer("BACKBONE"),
            help="Model, as in `embedx extract --backbone`.",
            parser=plainly(expand_backbone),
        ),
    ],
    image_size: Annotated[
        int | None,
        typer.Option("--image-size", metavar="N", min=1, help="Height and width of the image. Default: the weights'."),
    ] = None,
    backbone_arg: Annotated[
        list[str] | None,
        typer.Option("--backbone-arg", metavar="KEY=VALUE", help="Argument of the factory; VALUE is JSON; repeatable."),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """List the layers of a backbone that --layer takes, with the shape of each one's output for one image.

    The layers are listed in the order in which they are computed. No weights are needed. Afterwards a shell completes
    them after --layer.
    """
    import_torchvision()
    from embedx.models.backbones import describe_layers
    from embedx.models.backbones.base import BackboneOptions

    options = BackboneOptions(backbone=backbone, image_size=image_size, backbone_arg=tuple(backbone_arg or ()))
    shapes = describe_layers(options)
    keep_layers(backbone, shapes)
    if as_json:
        print_json([{"name": name, "shape": list(shape)} for name, shape in shapes.items()])
    else:
        for name, shape in shapes.items():
            print_line(name, "x".join(map(str, shape)))
