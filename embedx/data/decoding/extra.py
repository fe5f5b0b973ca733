"""The packages of the extra `formats`, each imported at the first image that needs it."""

from __future__ import annotations

import importlib
from typing import Any

from embedx.data.reading.files import RejectedInputError

PACKAGES = ("imagecodecs", "pillow-heif", "pillow-jxl-plugin", "tifffile")
"""The packages of the extra `formats`, which decode where they are installed."""
INSTALL = "install it by pip install 'embedx[formats]'"
"""The advice where one of them is missing."""


def import_package(name: str, needing: str) -> Any:
    """Imports one of the packages.

    Args:
        name: The package's name.
        needing: The beginning of the reason where it is missing, as in `a JPEG XL of 16 bits, which needs`.

    Raises:
        RejectedInputError: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RejectedInputError(f"{needing} the package {name}; {INSTALL}") from error
