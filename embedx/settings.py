"""The declaration of a setting: it gives a flag, a key in a TOML file, their help, and a place on the help page."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Final

from embedx import paths
from embedx.values import parse_channels, parse_size


def setting(default: Any = dataclasses.MISSING, *, help: str, short: str = "", **extra: Any) -> Any:
    """Declares one field of a configuration, with all that the command line needs to make an option of it.

    Args:
        default: The value without the option; a setting without a default must be given.
        help: The option's help; it states the default where that is not a value.
        short: The option's short form, such as `-b`.
        **extra: Further facts: `panel` (the part of the help page), `flag`, `parser`, `metavar` (what its value is
            called; a shell completes by it), `shown` (the default in words), `lowest`, `highest`, and `path` (the
            function of `embedx.paths` that expands it).
    """
    return dataclasses.field(default=default, metadata={"help": help, "short": short, **extra})


PANELS: Final = ("Inputs", "Backbone", "Preprocessing", "Output", "Machine", "Running again")
"""The parts of a help page, in its order."""
inputs, backbone, preprocessing, output, machine, running_again = (
    functools.partial(setting, panel=panel) for panel in PANELS
)
"""The declarations of a setting in each part."""

LOCAL: Final[dict[str, Any]] = {"path": paths.local_path, "metavar": "PATH"}
"""The further facts of a setting that is a path on this machine."""
SIZE: Final[dict[str, Any]] = {"parser": parse_size, "metavar": "SIZE"}
CHANNELS: Final[dict[str, Any]] = {"parser": parse_channels, "metavar": "R,G,B"}
