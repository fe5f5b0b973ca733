"""The import of torchvision without torch's compiler, whose own import takes two seconds."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_COMPILER_UTILS = "torch._dynamo.utils"


def import_torchvision() -> None:
    """Imports torch and torchvision, and leaves out torch's compiler where torchvision can do without it.

    torchvision imports the compiler just to ask whether it supports a device. A stand-in answers no. Where torchvision
    asks for anything else, the stand-in gives way to the compiler itself.
    """
    import torch  # noqa: F401

    if _COMPILER_UTILS not in sys.modules:
        sys.modules[_COMPILER_UTILS] = _StandIn(_COMPILER_UTILS)
    try:
        import torchvision  # noqa: F401
    finally:
        if isinstance(sys.modules.get(_COMPILER_UTILS), _StandIn):
            del sys.modules[_COMPILER_UTILS]


class _StandIn(ModuleType):
    """Stands for the compiler's module while torchvision is imported."""

    @staticmethod
    def is_compile_supported(device: object) -> bool:
        """Tells that torchvision should run its operators as they are."""
        return False

    def __getattr__(self, name: str) -> Any:
        """Imports the real module, which takes this one's place, and returns what it has of this name."""
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)
