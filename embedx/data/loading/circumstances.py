"""The reasons why an input gives no row, and which of them are no verdict on it.

Time, memory and a crash need not be the input's fault: such an input is rejected, and tried twice, by two runs. Where
the machine or the network is at fault it is unavailable, and tried by every run.
"""

from __future__ import annotations

from typing import NamedTuple, Self

from embedx.system.passing import LaterError, is_absence, passing_error

NO_END = "no end within --timeout"
NO_MEMORY = "too large for the memory there is"
CRASHED = "decoder crashed: "
ENDED = "decoder ended its process with exit code "
_TWICE = " (tried twice)"
_LONG_ROW = 20
"""The number of unavailable inputs in a row from which a worker makes only one attempt at each further one."""
_DELAYS = (0.4, 1.2)
"""The seconds before the second and the third attempt."""


class Failure(NamedTuple):
    """The reason why an input gives no row."""

    reason: str
    is_unavailable: bool = False
    """True if the machine or the network is at fault, and not the input."""
    may_pass_soon: bool = False
    """True if another attempt within seconds may succeed."""

    @classmethod
    def of(cls, error: Exception, *, was_listed: bool) -> Self:
        """Judges the error of reading or decoding an input.

        Args:
            error: The error, which names its cause.
            was_listed: Whether this run has seen the input's file: if it is not there now, its disk may be away.
        """
        passing = passing_error(error)
        if passing is None and not (was_listed and is_absence(error)):
            return cls(str(error))
        return cls(str(error), True, not isinstance(passing, LaterError))


UNREAD = Failure("no end of reading it within --timeout", True)
"""The failure of an input whose disk or server does not answer."""


class Patience:
    """The delays between the attempts at an input, which end where all inputs are unavailable for long."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def delays(self) -> tuple[float, ...]:
        """Returns the seconds before each further attempt at the next input."""
        return _DELAYS if self._in_a_row < _LONG_ROW else ()

    def note(self, failure: Failure | None) -> None:
        """Takes notice of the outcome of the last attempt at an input."""
        self._in_a_row = self._in_a_row + 1 if failure is not None and failure.is_unavailable else 0


def deserves_another_try(reason: str | None) -> bool:
    """Tells whether the next run is to try a rejected input again by itself."""
    return bool(reason) and str(reason).startswith((NO_END, NO_MEMORY, CRASHED, ENDED)) and _TWICE not in str(reason)


def tried_twice(reason: str | None) -> str | None:
    """Returns the reason of an input that an earlier run had rejected too."""
    return f"{reason}{_TWICE}" if deserves_another_try(reason) else reason
