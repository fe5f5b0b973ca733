"""Models in programs of several threads: much of what torch sets while it builds and traces is of the process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.fx import Tracer


class _Turns(contextlib.ContextDecorator):
    """A lock that one thread at a time holds, in a `with` or for a function; the same thread may take it again."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


ONE_AT_A_TIME = _Turns()
"""Held by a thread that builds a model, or embeds in memory: torch's settings, and the folder, are of the process."""


class OwnThreadTracer(Tracer):
    """Traces the calls of the thread that made it, and lets the modules of all others compute as ever.

    While torch.fx traces a module, it takes the calls of all modules there are.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._thread = threading.get_ident()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Records a module's call, if it is a call of this thread."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Returns what stands for a module's attribute, which is the attribute itself in another thread."""
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)
