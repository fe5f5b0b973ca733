"""The errors that end a command, each with its exit code.

EmbedxError                    1  a run failed
├── ConfigError                2  a setting, a file or a path has to change before the command can succeed
│   ├── CheckpointError        2  a weights file can't be found or read, or does not fit the backbone
│   ├── ConnectorError         2  a connector is missing, or names a key that is not there
│   ├── RuntimeUnfitError      2  a runtime can't run this backbone on this machine
│   └── StoreMismatchError     2  the output folder holds something else
├── StoreError                 1  a store is damaged, incomplete or can't be written
│   ├── DamagedUnitsError      1  units of a store are damaged, each of which it names
│   ├── NotAStoreError         2  there is no store at the path
│   └── StoreReplacedError     1  another store took the place of the one that was being read
├── WriterError                1  the writer process failed
│   └── WriterLostError        1  the writer process was killed, or ended by itself
├── LoaderError                1  a worker process died
├── MemberError                1  a member of a run by several processes died, again and again
├── DeviceMemoryError          1  the forward pass does not fit into the device's memory
├── InputError                 1  an input was rejected and `--on-error fail` was given
├── TooManyUnavailableError    1  more inputs were unavailable than `--max-unavailable` allows
├── TooManyRejectedError       3  finished, but inputs are unavailable, or more were rejected than allowed
├── LeakError                  3  finished, but splits or stores have rows in common, and `--fail-on-leak` was given
└── StoreLockedError          75  another run holds the store

Interrupted (a BaseException)  130 for SIGINT, such as Ctrl-C; 143 for SIGTERM
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Sequence
from typing import Any, Self

from embedx.credentials import credentials_hidden

WINDOWS = "embedx does not run on Windows itself; install and run it in WSL, the Windows Subsystem for Linux"

_PERMISSION = frozenset({errno.EACCES, errno.EPERM})
_OF_THE_MACHINE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV}
    | {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOLCK, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN}
)
"""The error numbers of a full, failing or overloaded machine: the path is right, and may work another time."""


class EmbedxError(Exception):
    """The base of all errors that embedx raises on purpose; the message is written for the user.

    URLs in it are shown without their credentials.
    """

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(credentials_hidden(arg) if isinstance(arg, str) else arg for arg in args))


class ConfigError(EmbedxError):
    """The command can't succeed as it was given: a setting, a file or a path has to change first.

    Most are found before anything is written. One that ends a run halfway leaves what is committed in the store.

    Args:
        faults: One message, or its lines: all the faults found, reported together.
    """

    exit_code = 2

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults = [credentials_hidden(fault) for fault in ([faults] if isinstance(faults, str) else faults)]
        super().__init__(self.faults)

    def __str__(self) -> str:
        """Returns the faults, one in each line."""
        return "\n".join(self.faults)

    @classmethod
    def check(cls, faults: Sequence[str]) -> None:
        """Raises one error naming all `faults`, if there are any."""
        if faults:
            raise cls(faults)


class CheckpointError(ConfigError):
    """A weights file can't be found, fetched or read, or does not fit the backbone."""


class ConnectorError(ConfigError):
    """A callback has no connector, or its connector names a key that is not there."""


class RuntimeUnfitError(ConfigError):
    """A runtime can't run this backbone on this machine."""

    @classmethod
    def of(cls, runtime: str, error: Exception) -> Self:
        """Makes the error of a runtime that refuses the backbone, with the message of the runtime's library."""
        text = " ".join(str(error).split())
        return cls(f"the runtime {runtime} does not take this backbone ({type(error).__name__}: {text:.300})")


class StoreMismatchError(ConfigError):
    """The output folder is no store, or a store of another recipe or of other inputs."""


class StoreError(EmbedxError):
    """A store is damaged, incomplete or can't be written."""


class DamagedUnitsError(StoreError):
    """Units of a store are damaged.

    Args:
        lines: The message, with a line for each of them.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class NotAStoreError(StoreError):
    """There is no store at the path."""

    exit_code = 2


class StoreReplacedError(StoreError):
    """Another store took the place of the one that was being read, or a run changed it; opened again, it is whole."""


class WriterError(EmbedxError):
    """The writer process raised, was killed, or ended without having finished."""


class WriterLostError(WriterError):
    """The writer process was killed, or ended without having finished; another one may well do."""


class LoaderError(EmbedxError):
    """The processes that read and decode inputs died again and again, and no input is at fault."""


class MemberError(EmbedxError):
    """A member of a run by several processes died, and so did those that came in its place."""


class DeviceMemoryError(EmbedxError):
    """The backbone, or its forward pass, does not fit into the device's memory."""


class InputError(EmbedxError):
    """An input was rejected, and the settings say that this ends the run."""


class TooManyUnavailableError(EmbedxError):
    """The machine or the network did not give more inputs than the settings allow."""


class TooManyRejectedError(EmbedxError):
    """The run finished, but inputs are unavailable, or more were rejected than allowed."""

    exit_code = 3


class LeakError(EmbedxError):
    """The comparison finished, but splits or stores have rows in common that must have none.

    Args:
        message: The message of the error.
        result: The DuplicatesResult, which has all that was found.
    """

    exit_code = 3

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message)
        self.result = result


class StoreLockedError(EmbedxError):
    """Another run holds the store."""

    exit_code = 75


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived; it passes every `except Exception`, and click, which handles Ctrl-C in its own way.

    Args:
        number: The signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """The exit code that a shell shows for a process that this signal ended."""
        return 128 + self.number


def is_refusal(error: BaseException | None) -> bool:
    """Tells whether the machine or a permission is at fault, and not the file or path that was used."""
    return isinstance(error, OSError) and error.errno in _OF_THE_MACHINE | _PERMISSION


def output_error(
    out: object, what: str, error: OSError, *, is_store: bool, flag: str = "--out"
) -> ConfigError | StoreError:
    """Turns an OSError about an output into a ConfigError (fix the path) or a StoreError (try again later).

    Args:
        out: The output folder, or file.
        what: The step that failed, as in `can't be made`.
        error: The error of that step.
        is_store: Whether the folder holds a store already: then a missing permission is at fault, not the path.
        flag: The flag that names the output.
    """
    refusal = f"{flag} {out}: {what} ({error.strerror or error}: {error.filename or out})"
    if error.errno in _OF_THE_MACHINE or (is_store and is_refusal(error)):
        return StoreError(f"{refusal}; once the cause is gone, the same command goes on")
    return ConfigError(f"{refusal}; choose another path")


def unknown(kind: str, name: str, valid: Iterable[str], *, hint: str = "") -> str:
    """Returns the message for a name that is not among the valid ones, with the nearest of these."""
    valid = sorted(valid)
    nearest = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    longer = [each for each in valid if name and each.startswith(name)]
    if len(longer) > 1:
        advice = f"names that begin so: {', '.join(longer[:8])}{', …' if len(longer) > 8 else ''}"
    elif nearest:
        advice = f"did you mean {nearest[0]}?"
    elif len(valid) <= 12:
        advice = f"valid: {', '.join(valid) or 'none'}"
    else:
        advice = f"there are {len(valid)} valid ones"
    return f"unknown {kind} {name!r}; {advice}{' ' + hint if hint else ''}"
