"""`embedx backbones`: lists the names that --backbone takes."""

from __future__ import annotations

import fnmatch
import shlex
from importlib.util import find_spec
from typing import Annotated

import typer

from embedx.cli.options import DebugOption, JsonOption
from embedx.cli.output import STDERR, print_json, print_line
from embedx.errors import ConfigError
from embedx.system.torch_imports import import_torchvision

EXAMPLES = """\
# torchvision's models
embedx backbones
# all that have dinov in their names, timm's and open_clip's too
embedx backbones dinov
# well-known models, each with the options that it needs
embedx backbones --tested"""
"""The examples on the help page."""

_NONE = "no pretrained weights"
_BEFORE_TAG = {"timm": ".", "openclip": "/"}
"""The prefixes of names that end in the tag of weights, with what stands before that."""


def command(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="PATTERN",
            help="Part of a name, or a pattern such as 'timm:convnext*.dinov3*'. Default: all of torchvision.",
        ),
    ] = None,
    tested: Annotated[
        bool, typer.Option("--tested", help="List well-known models, with the options they need.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """List backbones of torchvision and, if they are installed, of timm and open_clip, with their pretrained weights.

    --backbone also takes hf:NAME, hf:FOLDER, the file of a program (.pt2, or TorchScript as .pt, .ts, .jit,
    .torchscript), your own code as package.module:factory, and none if the inputs are features.
    """
    if tested:
        _print_tested(pattern, as_json=as_json)
        return
    import_torchvision()
    from embedx.models.backbones.torchvision import backbone_names, weights_names

    found = {name: weights_names(name) for name in backbone_names() if _matches(name, pattern)}
    if pattern is not None:
        found |= _of_extras(pattern)
    _check_found(found, pattern)
    if as_json:
        print_json([{"name": name, "weights": weights} for name, weights in found.items()])
        return
    for name, weights in found.items():
        before_tag = _BEFORE_TAG.get(name.partition(":")[0])
        if before_tag and weights:  # whose weights are part of the name
            for tag in weights:
                print_line(f"{name}{before_tag}{tag}")
        else:
            print_line(name, ", ".join(weights) or _NONE)
    if pattern is None:
        for prefix, package in (("timm", "timm"), ("openclip", "open_clip")):
            if find_spec(package):
                STDERR.print(f"{package} is installed: `embedx backbones {prefix}:` lists its models too")


def _of_extras(pattern: str) -> dict[str, list[str]]:
    """Returns the models of the installed extras that match, each with the tags of its weights that do, or all."""
    models: dict[str, list[str]] = {}
    if find_spec("timm"):
        from embedx.models.backbones import timm

        models |= timm.weights_of_models()
    if find_spec("open_clip") and not pattern.startswith("timm:"):  # as it takes seconds to import
        from embedx.models.backbones import openclip_library

        models |= openclip_library.weights_of_models()
    found = {}
    for name, all_tags in models.items():
        before_tag = _BEFORE_TAG[name.partition(":")[0]]
        tags = [tag for tag in all_tags if _matches(f"{name}{before_tag}{tag}", pattern)]
        if tags or _matches(name, pattern):
            found[name] = tags
    return found


def _print_tested(pattern: str | None, *, as_json: bool) -> None:
    from embedx.models.backbones.tested import TESTED, TESTED_BY_CLASS

    models = [each for each in (*TESTED, *TESTED_BY_CLASS) if _matches(f"{each.title} {each.backbone}", pattern)]
    _check_found(models, pattern)
    if as_json:
        print_json([{"title": each.title, "arguments": each.arguments} for each in models])
    else:
        for each in models:
            print_line(each.title, shlex.join(each.arguments))


def _matches(name: str, pattern: str | None) -> bool:
    """Tells whether a name fits a pattern with wildcards, or else has it as a part; in any case of letters."""
    name, wanted = name.lower(), (pattern or "").lower()
    return fnmatch.fnmatchcase(name, wanted) if set(wanted) & set("*?[") else wanted in name


def _check_found(found: object, pattern: str | None) -> None:
    if not found:
        missing = [extra for extra, package in (("timm", "timm"), ("openclip", "open_clip")) if not find_spec(package)]
        names = ",".join(missing)
        hint = f"; more models are listed after pip install 'embedx[{names}]'" if missing else ""
        raise ConfigError(f"no backbone matches {pattern!r}; `embedx backbones` lists those of torchvision{hint}")
