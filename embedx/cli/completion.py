"""The values that a shell completes, by what an option's value is called on the help page; read from files alone.

Nothing here imports torch, torchvision or timm, which takes seconds: their names are read from their source files,
those in a store from its manifest, and a backbone's layers from what `embedx layers` has left. Where nothing is
returned, the shell completes paths.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

from embedx.names import EMBEDDINGS, MANIFEST, NO_BACKBONE
from embedx.paths import cache_folder

_TORCHVISION = ("", "segmentation", "detection", "quantization")
"""The folders of torchvision's models that are backbones."""
_BUILDER = re.compile(r"^@register_model(?:\((?:name=\"(\w+)\")?\))?\n(?:@.*?^)?def (\w+)\(", re.MULTILINE | re.DOTALL)
"""The registration of a model, in torchvision and in timm: its name, or else that of its function."""
_TAGGED = re.compile(r"^    ['\"](\w+\.(?!untrained)[\w-]+)['\"]: ", re.MULTILINE)
"""The entry of pretrained weights in one of timm's tables."""
_PLAIN = re.compile(r"\w[\w@%+=:,./-]*")
"""The names that every shell takes as they stand. A store may be a stranger's, and zsh evaluates what is completed."""


def torchvision_names() -> list[str]:
    """Returns the names that `embedx backbones` lists of torchvision."""
    return [name for folder in _TORCHVISION for name in sorted(set(_names("torchvision", folder)))]


def timm_names() -> list[str]:
    """Returns the names of timm's models and of their weights, each as `timm:NAME` or `timm:NAME.TAG`."""
    names = {*_names("timm", ""), *_names("timm", "", _TAGGED)}
    return [f"timm:{name}" for name in sorted(names)]


def _names(package: str, folder: str, pattern: re.Pattern[str] = _BUILDER) -> Iterator[str]:
    spec = find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for file in Path(place, "models", folder).glob("*.py"):
            for match in pattern.finditer(file.read_text(encoding="utf-8")):
                yield next(filter(None, match.groups()))


def _backbones(incomplete: str) -> list[str]:
    return timm_names() if incomplete.startswith("timm") else [*torchvision_names(), NO_BACKBONE]


def _weights(incomplete: str) -> list[str]:
    return ["DEFAULT", "random", "sample"]


def _splits(incomplete: str) -> list[str]:
    return [name for manifest in _manifests() for name in manifest["plan"]["splits"]]


def _tensors(incomplete: str) -> list[str]:
    return [EMBEDDINGS, *_layers(incomplete)]


def _layers(incomplete: str) -> list[str]:
    files = map(_layers_file, _given())
    listed = [name for file in files if file.is_file() for name in file.read_text(encoding="utf-8").splitlines()]
    return [*listed, *(name for manifest in _manifests() for name in manifest["recipe"]["layers"])]


def keep_layers(backbone: str, names: Iterable[str]) -> None:
    """Leaves the names of a backbone's layers to be completed, which take seconds to find; not where it can't."""
    file = _layers_file(backbone)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(names), encoding="utf-8")


def _layers_file(backbone: str) -> Path:
    return cache_folder() / "layers" / quote(backbone, safe="")


def _given() -> Iterator[str]:
    """Yields the words of the command line so far, and what follows an = in them."""
    words = (word for name in ("COMP_WORDS", "_TYPER_COMPLETE_ARGS") for word in _words(os.environ.get(name, "")))
    for word in words:
        yield from filter(None, (word, word.partition("=")[2]))


def _manifests() -> Iterator[Any]:
    """Yields the manifests of the stores that the command line names so far."""
    for place in dict.fromkeys(_given()):
        if (manifest := Path(place, MANIFEST).expanduser()).is_file():
            yield json.loads(manifest.read_bytes())


def _words(line: str) -> Iterator[str]:
    """Yields the words of a command line, without their quotes; not one whose quote is still open."""
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    with contextlib.suppress(ValueError):
        yield from lexer


_COMPLETERS = {
    "BACKBONE": _backbones,
    "WEIGHTS": _weights,
    "SPLIT": _splits,
    "SPLIT SPLIT": _splits,
    "NAME": _tensors,
    "LAYER": _layers,
}
"""The function that lists the values of each kind."""


def completer(metavar: str | None) -> Callable[[str], list[str]] | None:
    """Returns the function that completes values of this kind; None leaves them to the shell."""
    if metavar not in _COMPLETERS:
        return None
    names = _COMPLETERS[metavar]

    def complete(incomplete: str) -> list[str]:
        # A damaged store, or a path of an unknown user.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
            found = dict.fromkeys(names(incomplete))
            return [name for name in found if name.startswith(incomplete) and _PLAIN.fullmatch(name)]
        return []

    return complete


@contextlib.contextmanager
def whole_words_in_bash() -> Iterator[None]:
    """Joins the words that bash has cut at : and =, as in `timm:vit`, and prints but what follows the last of these."""
    words = os.environ.get("COMP_WORDS", "").split("\n")
    here = int(os.environ.get("COMP_CWORD", 0))
    if "_EMBEDX_COMPLETE" not in os.environ or here >= len(words):
        yield
        return
    first = here
    while first > 1 and (words[first] in (":", "=") or words[first - 1] in (":", "=")):
        first -= 1
    joined = "".join(words[first : here + 1])
    os.environ["COMP_WORDS"] = "\n".join([*words[:first], joined])
    os.environ["COMP_CWORD"] = str(first)
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown):
            yield
    finally:
        begin = max(joined.rfind(":"), joined.rfind("=")) + 1
        for line in shown.getvalue().splitlines():
            print(line[begin:])
