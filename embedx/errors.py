"""Every error embedx raises on purpose, each with its exit code.

EmbedxError                    1  a run failed
├── ConfigError                2  what was asked for can't be done as asked
│   ├── CheckpointError        2  a weights file does not fit the backbone, or can't be read or had
│   ├── ConnectorError         2  a connector names a key that is not there, or is missing
│   └── StoreMismatchError     2  the output folder holds something else
├── StoreError                 1  a store is damaged, incomplete or can't be written
├── WriterError                1  the writer process failed
├── DeviceMemoryError          1  the forward pass does not fit into the device's memory
├── InputError                 1  an input was rejected and `--on-error fail` was given
├── TooManyRejectedError       3  finished, but more inputs were rejected than allowed
└── StoreLockedError          75  another run holds the store

Interrupted (a BaseException)  130 for SIGINT, such as Ctrl-C; 143 for SIGTERM
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Sequence

_PERMISSION = frozenset({errno.EACCES, errno.EPERM})
_OF_THE_MACHINE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV}
    | {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOLCK, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN}
)
"""Refusals that say nothing of the path that was asked for: another time it may do."""


class EmbedxError(Exception):
    """Base of all errors that embedx raises on purpose; the message is written for the user."""

    exit_code = 1


class ConfigError(EmbedxError):
    """What was asked for can't be done as asked; nothing has been written.

    Args:
        faults: One message, or all the faults found, reported together.
    """

    exit_code = 2

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        super().__init__("\n".join(self.faults))

    @classmethod
    def check(cls, faults: Sequence[str]) -> None:
        """Raises one error naming all `faults`, if there are any."""
        if faults:
            raise cls(faults)


class CheckpointError(ConfigError):
    """A weights file does not fit the backbone, or can't be read or had."""


class ConnectorError(ConfigError):
    """A connector names a key that is not there, or a callback needs a connector and has none."""


class StoreMismatchError(ConfigError):
    """The output folder is not a store, or a store made from another recipe or other inputs."""


class StoreError(EmbedxError):
    """A store is damaged, incomplete or can't be written."""


class WriterError(EmbedxError):
    """The writer process raised, was killed, or ended without having finished."""


class DeviceMemoryError(EmbedxError):
    """The backbone, or its forward pass, does not fit into the device's memory."""


class InputError(EmbedxError):
    """An input was rejected where the first rejection is to end the run."""


class TooManyRejectedError(EmbedxError):
    """The run finished, but more inputs were rejected than allowed."""

    exit_code = 3


class StoreLockedError(EmbedxError):
    """Another run holds the store."""

    exit_code = 75


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived; unwinds past every `except Exception`, and past click, which ends Ctrl-C its own way.

    Args:
        number: The signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """As a shell tells of a process that a signal ended."""
        return 128 + self.number


def is_refusal(error: BaseException | None) -> bool:
    """Whether the machine refused something, so that what was asked for, or was to be read, may be as it should."""
    return isinstance(error, OSError) and error.errno in _OF_THE_MACHINE | _PERMISSION


def output_error(out: object, what: str, error: OSError, *, is_store: bool) -> ConfigError | StoreError:
    """Words a refusal of the output folder: an error of usage, or, where it may well do another time, of the run.

    Args:
        out: The folder.
        what: What can't be done with it, as in `can't be made`.
        error: The refusal.
        is_store: Whether there is a store already, so that it is the permission that is wrong, and not the folder.
    """
    refusal = f"--out {out}: {what} ({error.strerror or error}: {error.filename or out})"
    if error.errno in _OF_THE_MACHINE or (is_store and is_refusal(error)):
        return StoreError(f"{refusal}; once the cause is gone, the same command goes on")
    return ConfigError(f"{refusal}; choose another path")


def unknown(kind: str, name: str, valid: Iterable[str], *, hint: str = "") -> str:
    """Words the one message for a name that is not among the valid ones, with the nearest of them."""
    valid = sorted(valid)
    nearest = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    if nearest:
        advice = f"did you mean {nearest[0]}?"
    elif len(valid) <= 12:
        advice = f"valid: {', '.join(valid) or 'none'}"
    else:
        advice = f"there are {len(valid)} valid ones"
    return f"unknown {kind} {name!r}; {advice}{' ' + hint if hint else ''}"
