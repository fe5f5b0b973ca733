"""Torch without its compiler, whose import takes as long as torch's own, and which few runs use.

It is imported later where something is compiled or exported.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, TypeVar

_COMPILER = "torch._dynamo"

T = TypeVar("T")


def import_torchvision() -> None:
    """Imports torch and torchvision, which asks whether its operators can be compiled, and is told that they can't."""
    import torch  # noqa: F401

    if _COMPILER in sys.modules:
        return
    utils = ModuleType(f"{_COMPILER}.utils")
    utils.is_compile_supported = lambda device: False  # type: ignore[attr-defined]
    with _in_place_of(utils):
        import torchvision  # noqa: F401


def first_without_compiler(compute: Callable[[], T]) -> T:
    """What a function gives `without_compiler`, or, if it asks for that, with it, in a second call."""
    with without_compiler() as compiler:
        try:
            return compute()
        except Exception:
            if not compiler.was_missed:
                raise
    return compute()


@contextlib.contextmanager
def without_compiler() -> Iterator[_Absent]:
    """While this lasts, what torch keeps its compiler out of runs as it is, and does not import it for that.

    So it is with all that computes on the meta device. What asks the compiler for anything else fails, and what this
    yields then tells that it `was_missed`.
    """
    compiler = _Absent(_COMPILER)
    if _COMPILER in sys.modules:
        yield compiler
        return
    with _in_place_of(compiler):
        try:
            yield compiler
        finally:
            for function in compiler.marked:  # torch notes there what it was given, for later calls
                vars(function).pop("__dynamo_disable", None)


class _Absent(ModuleType):
    """Stands for the compiler."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.was_missed = False
        self.marked: list[Any] = []

    def disable(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """Gives the function as it is."""
        self.marked.append(function)
        return function

    def __getattr__(self, name: str) -> Any:
        if name == "__path__" or not name.startswith("__"):
            self.was_missed = True
        raise AttributeError(f"{self.__name__} is left out, and has no {name}")


@contextlib.contextmanager
def _in_place_of(module: ModuleType) -> Iterator[None]:
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        del sys.modules[module.__name__]
