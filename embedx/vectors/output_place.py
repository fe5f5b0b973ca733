"""The place of a file that is made of a store: outside of it."""

from __future__ import annotations

from pathlib import Path

from embedx.errors import ConfigError
from embedx.store.reading.reader import Store


def check_outside(flag: str, path: Path | None, *stores: Store) -> None:
    """Raises a ConfigError if a file or folder to be written, which a flag names, lies in a store or is one."""
    for store in stores:
        if path is None or not isinstance(store.path, Path):
            continue
        if path.resolve().is_relative_to(store.path.resolve()):
            raise ConfigError(f"{flag} {path} is in the store {store.path}; choose a path outside of it")
