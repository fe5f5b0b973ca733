"""Keeps the caller's `__main__` out of child processes: the one file that knows how multiprocessing passes it on.

multiprocessing tells each child the file or the name of the module `__main__`, and the child imports it, so that it
finds what was pickled of it. A script without `if __name__ == "__main__"` would so run again in every child. No child
of embedx needs anything of it. Where the stand-in goes unnoticed, children import the module as they do by default.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from embedx.errors import ConfigError

_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def main_left_out() -> Iterator[None]:
    """Lets the calling thread start a child process, within the context, that does not import `__main__`.

    Raises:
        ConfigError: If the child is given something that `__main__` defines, which it could not find.
    """
    with _one_at_a_time:
        real = sys.modules["__main__"]
        stand_in = sys.modules["__main__"] = _StandIn(real)
        try:
            yield
        except (pickle.PicklingError, AttributeError) as error:
            if not stand_in.asked:
                raise
            raise ConfigError(
                f"{stand_in.asked[-1]} is defined in __main__, the program that is running, which embedx's "
                "processes do not import; define it in a module of its own, and import it from there"
            ) from error
        finally:
            stand_in.owner = None
            sys.modules["__main__"] = real


class _StandIn(ModuleType):
    """An empty `__main__` for the thread that made it; all others see the real one's names in it.

    Args:
        real: The module that it stands for.
    """

    def __init__(self, real: ModuleType) -> None:
        super().__init__(real.__name__)
        self.real = real
        self.owner: int | None = threading.get_ident()
        self.asked: list[str] = []
        """The names that its owner looked for, as pickle does."""

    def __getattr__(self, name: str) -> Any:
        if self.owner != threading.get_ident():
            return getattr(self.real, name)
        if not name.startswith("__"):
            self.asked.append(name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
