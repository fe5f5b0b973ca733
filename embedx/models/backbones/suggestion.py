"""Suggestions for names that torchvision does not have, and that look like another kind of backbone."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

_OWNER_AND_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def suggestion(name: str) -> str | None:
    """Returns the next step for a text that looks like another kind of backbone; None if it does not."""
    path = Path(name)
    if path.is_dir() and (path / "config.json").is_file():
        return f"{name} is a folder of a Hugging Face model; give --backbone hf:{name}"
    if (factory := _factory(name)) is not None:
        return f"it is a Python module; give --backbone {factory}"
    if path.is_file():
        return f"{name} is a file; if it holds weights, give --checkpoint {name}, and their architecture as --backbone"
    if name in ("timm", "hf"):
        return f"give --backbone {name}:NAME"
    if name in ("openclip", "open_clip"):
        return "give --backbone openclip:NAME/TAG"
    short = name.removeprefix("timm/")
    if _is_of_timm(short):
        return f"timm has it; give --backbone timm:{short}"
    if _OWNER_AND_NAME.fullmatch(name):
        return f"if it is a model on the Hugging Face hub, give --backbone hf:{name}"
    return None


def _factory(name: str) -> str | None:
    """Returns `module:function` for a module of the current folder, or for a function in one; runs none of its code."""
    parts = (name.removesuffix(".py").replace("/", ".") if name.endswith(".py") else name).split(".")
    for count in (len(parts), len(parts) - 1):
        path = "/".join(parts[:count])
        file = next((Path(file) for file in (f"{path}.py", f"{path}/__init__.py") if Path(file).is_file()), None)
        if file is not None and all(part.isidentifier() for part in parts):
            function = "".join(parts[count:]) or _only_function(file)
            return f"{'.'.join(parts[:count])}:{function}"
    return None


def _only_function(file: Path) -> str:
    """Returns the name of the one public function of a module, or FUNCTION if it has none or several."""
    try:
        body = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        body = []
    names = [node.name for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return names[0] if len(names) == 1 else "FUNCTION"


def _is_of_timm(name: str) -> bool:
    if importlib.util.find_spec("timm") is None:
        return False
    import timm

    return name.partition(".")[0] in timm.list_models()
