"""The declaration of a setting: it gives a flag, a key in a TOML file, their help, and a place on the help page."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self, cast

from embedx import paths
from embedx.credentials import value_without_credentials
from embedx.errors import ConfigError
from embedx.recipe import canonical_json
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
STORE: Final[dict[str, Any]] = {"path": paths.store_path, "metavar": "PATH|URL"}
"""The further facts of a setting that is the place of a store."""
WHERE: Final[dict[str, Any]] = {
    "metavar": "SQL",
    "help": "Condition on the index's columns that rows must meet, such as \"group = 'cat'\".",
}
"""The help of a setting that chooses rows by a condition."""
DEVICE: Final[dict[str, Any]] = {"metavar": "auto|cpu|cuda|cuda:N"}
"""The further facts of a setting that names a device."""
SIZE: Final[dict[str, Any]] = {"parser": parse_size, "metavar": "SIZE"}
CHANNELS: Final[dict[str, Any]] = {"parser": parse_channels, "metavar": "R,G,B"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The base of a dataclass whose fields are settings: it brings their values into one form, and stores them."""

    def __post_init__(self) -> None:
        """Takes one text or path where several may be given, as the command line does, and expands paths."""
        for field in dataclasses.fields(self):
            if isinstance(field.default, tuple):
                given = [given] if isinstance(given := getattr(self, field.name), str | os.PathLike) else given
                object.__setattr__(self, field.name, tuple(map(os.fspath, given)))
        paths.expand_paths(self)

    def to_json(self) -> dict[str, Any]:
        """Returns the settings as plain JSON values, with the folder from which their relative paths start."""
        plain = {
            name: str(value) if isinstance(value, Path | paths.BucketPath) else value
            for name, value in vars(self).items()
        }
        plain = {name: value_without_credentials(value) for name, value in plain.items()}
        return {**cast(dict[str, Any], json.loads(json.dumps(plain))), "working_directory": os.getcwd()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Returns the settings that `to_json` described; one that is missing there gets its default.

        Raises:
            ConfigError: If `stored` does not describe such settings.
        """
        names = {field.name for field in dataclasses.fields(cls)}.intersection(stored)
        values: dict[str, Any] = {name: stored[name] for name in names}
        values |= {name: tuple(item) for name, item in values.items() if isinstance(item, list)}
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"the settings {canonical_json(stored)} are not those of an extraction") from error
