"""Paths in a store that follow no links, for writing and removing; `open_folder` is for reading.

By a link, a stranger's store could have any file of the machine overwritten. Only the store's own folder may be a link.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from embedx.errors import StoreError


def path_inside(root: Path, relative: str, known: set[str] | None = None) -> str:
    """Returns the path of a file or folder in the store, which need not exist.

    Args:
        root: The store's folder.
        relative: The path in the store.
        known: The paths that are known to be no links; those that are checked now are added.

    Raises:
        StoreError: If the path, or a folder on the way to it, is a link.
    """
    known = set() if known is None else known
    path = os.fspath(root)
    for part in relative.split("/"):
        path = f"{path}/{part}"
        if path not in known and os.path.islink(path):
            raise StoreError(
                f"{path} is a link, and links in a store are not followed; replace it with the file that it leads to"
            )
        known.add(path)
    return path


def regular_files(root: Path, depth: int) -> Iterator[Path]:
    """Yields the regular files at most `depth` folders below `root`."""
    for folder, folders, names in os.walk(root):
        path = Path(folder)
        if len(path.relative_to(root).parts) == depth:
            folders.clear()
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a running writer's temporary file
                if stat.S_ISREG((path / name).lstat().st_mode):
                    yield path / name
