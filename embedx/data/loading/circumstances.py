"""The reasons that need not be the input's fault: time, memory, a crash. Such an input is tried twice, by two runs."""

from __future__ import annotations

NO_END = "no end within --timeout"
NO_MEMORY = "too large for the memory there is"
CRASHED = "decoder crashed: "
ENDED = "decoder ended its process with exit code "
_TWICE = " (tried twice)"


def deserves_another_try(reason: str | None) -> bool:
    """Tells whether the next run is to try a rejected input again by itself."""
    return bool(reason) and str(reason).startswith((NO_END, NO_MEMORY, CRASHED, ENDED)) and _TWICE not in str(reason)


def tried_twice(reason: str | None) -> str | None:
    """Returns the reason of an input that an earlier run had rejected too."""
    return f"{reason}{_TWICE}" if deserves_another_try(reason) else reason
