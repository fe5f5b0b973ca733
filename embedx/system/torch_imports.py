"""Torch without its compiler, whose import takes as long as torch's own, and without symbolic shapes.

Few runs use them. They are imported later where something is compiled or exported.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

_COMPILER = "torch._dynamo"

_ONE_AT_A_TIME = threading.RLock()

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
    """What a function gives `without_compiler`; if it misses something of it, in another call that has that."""
    while True:
        with without_compiler() as missed:
            try:
                result = compute()
            except Exception:
                if not missed:
                    raise
            else:
                if not missed:
                    return result
        for name in missed:
            importlib.import_module(name)


@contextlib.contextmanager
def without_compiler() -> Iterator[set[str]]:
    """While this lasts, torch is kept from importing its compiler and symbolic shapes, just to be told not to use them.

    So it is with all that computes on the meta device. What asks for more of them fails, and what this yields then
    has the names of the modules that are missed.
    """
    missed: set[str] = set()
    marked: list[Any] = []

    def leave_as_it_is(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
        marked.append(function)
        return function

    known = {_COMPILER: {"disable": leave_as_it_is}} | _WITHOUT_SYMBOLS
    with _ONE_AT_A_TIME, contextlib.ExitStack() as stack:
        for name in known.keys() - sys.modules.keys():
            stack.enter_context(_in_place_of(_Absent(name, known[name], missed)))
        try:
            yield missed
        finally:
            for function in marked:  # torch notes there what it was given, for later calls
                vars(function).pop("__dynamo_disable", None)


def _of_numbers(name: str, compute: Callable[..., Any]) -> Callable[..., Any]:
    """A function of symbolic shapes as long as those are not imported, and there are no symbols."""

    def function(*args: Any, **kwargs: Any) -> Any:
        module = sys.modules.get(_SYMBOLIC_SHAPES)
        if module is None or isinstance(module, _Absent):
            return compute(*args)
        return getattr(module, name)(*args, **kwargs)

    return function


def _as_it_is(value: T, *args: Any) -> T:
    return value


_SYMBOLIC_SHAPES = "torch.fx.experimental.symbolic_shapes"
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "expect_true": _as_it_is,
    "guard_or_false": _as_it_is,
    "guard_or_true": _as_it_is,
    "guard_size_oblivious": _as_it_is,
    "guarding_hint_or_throw": _as_it_is,
    "has_guarding_hint": lambda value: True,
    "is_nested_int": lambda value: False,
    "statically_known_true": _as_it_is,
    "sym_and": lambda *values: all(values),
    "sym_eq": lambda a, b: tuple(a) == tuple(b) if isinstance(a, tuple | list) else a == b,
    "sym_or": lambda *values: any(values),
}
_WITHOUT_SYMBOLS: dict[str, dict[str, Any]] = {
    "sympy": {"Basic": type("Basic", (), {})},
    _SYMBOLIC_SHAPES: {name: _of_numbers(name, compute) for name, compute in _FUNCTIONS.items()}
    | {"__path__": []},  # asked for by imports from it
}
"""What these modules have where there are no symbols, as there can be none while they are not imported."""


class _Absent(ModuleType):
    """Stands for a module of which no more is needed than what is `known`; whoever kept it has the real one later."""

    def __init__(self, name: str, known: dict[str, Any], missed: set[str]) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # by which others ask whether there is such a module
        self.known = known
        self.missed = missed

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is not self:
            return getattr(importlib.import_module(self.__name__), name)
        if name in self.known:
            return self.known[name]
        if name == "__path__" or not name.startswith("__"):
            self.missed.add(self.__name__)
        raise AttributeError(f"{self.__name__} is left out, and has no {name}")


@contextlib.contextmanager
def _in_place_of(module: ModuleType) -> Iterator[None]:
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        if sys.modules.get(module.__name__) is module:
            del sys.modules[module.__name__]
