"""Links in a store lead nowhere: they are followed neither for reading nor for writing nor for removing.

A store from a stranger could have any file of the machine read or written by them. Only the store's own folder may be
a link.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from embedx.errors import StoreError


def path_inside(root: Path, relative: str, known: set[str] | None = None) -> str:
    """The place of something in the store at `root`, whether it is there already or not.

    Args:
        root: The store.
        relative: What to find, by its path in the store.
        known: Places that were seen to be no links, and need not be looked at again; gets those that are seen now.

    Raises:
        StoreError: If a link stands there or on the way there.
    """
    path = os.fspath(root)
    for part in relative.split("/"):
        path = f"{path}/{part}"
        if known is not None and path in known:
            continue
        if os.path.islink(path):
            raise StoreError(
                f"{path} is a link, and those in a store are not followed; put what it leads to in its place"
            )
        if known is not None:
            known.add(path)
    return path


def regular_file(root: Path, relative: str) -> Path:
    """The path of a file in the store at `root` that can be opened: no link, pipe or device.

    Raises:
        StoreError: If there is none.
    """
    path = Path(path_inside(root, relative))
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise StoreError(f"{path}: can't be read ({error.strerror})") from error
    if not stat.S_ISREG(mode):
        raise StoreError(f"{path} is not a plain file")
    return path


def regular_files(root: Path, depth: int) -> Iterator[Path]:
    """The plain files at most `depth` folders below `root`."""
    for folder, folders, names in os.walk(root):
        path = Path(folder)
        if len(path.relative_to(root).parts) == depth:
            folders.clear()
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a running writer's temporary file
                if stat.S_ISREG((path / name).lstat().st_mode):
                    yield path / name
