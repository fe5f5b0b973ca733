"""Arrays that a user gives in a file of numpy."""

from __future__ import annotations

import tokenize
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedx.errors import ConfigError


def read_npy(path: Path, flag: str) -> NDArray[Any]:
    """Reads an array from a file that `numpy.save` wrote; never runs what the file holds.

    Args:
        path: The file, whatever its name ends in.
        flag: The flag that names the file, such as `--map`.

    Raises:
        ConfigError: If there is no such file, or it is no array of numpy.
    """
    try:
        with path.open("rb") as file:
            array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, TypeError, EOFError, SyntaxError, tokenize.TokenError, MemoryError) as error:
        stated = isinstance(error, OSError) and error.strerror
        reason = stated or " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"{flag} {path}: can't be read ({reason}); give a .npy file of one array, as numpy.save writes it"
        ) from error
    return array
