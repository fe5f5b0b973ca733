"""The folder of an export: it appears under its name once it is whole, and replaces nothing but another export.

Files are written to `.NAME.embedx-export` beside it, which is synced and then takes the name. An error or Ctrl-C
removes that folder; what a killed process leaves of it is removed by the next export to the same place.

    folder/
      .embedx-export.json    what this is, and its files with their sizes: written last, it marks an export
      train.parquet …        the files, as the format has them
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embedx.errors import ConfigError, StoreLockedError, output_error
from embedx.store.format.atomic import make_folder, sync_folder
from embedx.store.format.creation import exchange

MARK = ".embedx-export.json"
"""The file that marks a folder as an export, and lists its files."""
_KIND = "embedx export 1"
_SHOWN = 3


class ExportFolder:
    """A folder that takes its name when it is whole.

    Args:
        out: The path of the folder; a link to a folder stands for that folder.
        overwrite: Whether an export that is there is replaced.

    Raises:
        ConfigError: If something is there that may not be replaced.
    """

    def __init__(self, out: Path, *, overwrite: bool) -> None:
        self.out = out
        self.overwrite = overwrite
        self.place = Path(os.path.realpath(out))
        self.temporary = self.place.parent / f".{self.place.name}.embedx-export"
        self.aside = self.place.parent / f".{self.place.name}.embedx-replaced"
        self.check()

    def check(self) -> None:
        """Raises a ConfigError if something is there that may not be replaced."""
        if not self.place.exists() or (self.place.is_dir() and not any(self.place.iterdir())):
            return
        if not self.overwrite:
            advice = "--overwrite replaces it, or choose" if (self.place / MARK).is_file() else "choose"
            raise ConfigError(f"--out {self.out} is there already; {advice} another path")
        others = sorted(_files_of(self.place).keys() - _listed(self.place, self.out).keys())
        if others:
            more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
            raise ConfigError(
                f"--out {self.out} is an export with other files in it, which --overwrite does not remove: "
                f"{', '.join(others[:_SHOWN])}{more}; move them, or choose another path"
            )

    @contextlib.contextmanager
    def written(self) -> Iterator[Path]:
        """Gives the empty folder to write to within the context; it gets its name by `commit`, or is removed.

        Raises:
            StoreLockedError: If another process is writing the same export.
            OSError: If the folder can't be made.
        """
        held = self._hold()
        try:
            if self.aside.exists() and not self.place.exists():  # a process was killed between two renames
                os.rename(self.aside, self.place)
                self.check()
            self._clear()
            _empty(self.temporary)
            yield self.temporary
        finally:
            shutil.rmtree(self.temporary, ignore_errors=True)
            self._clear()
            os.close(held)

    def commit(self, about: dict[str, Any]) -> dict[str, int]:
        """Brings the files to disk, and gives the folder its name.

        Args:
            about: The facts for the file MARK, as JSON.

        Returns:
            The size of each file, by its path in the folder.

        Raises:
            ConfigError: If something that may not be replaced has come there meanwhile.
            OSError: If a file can't be synced, or the folder can't be renamed.
        """
        files = dict(sorted(_files_of(self.temporary).items()))
        mark = json.dumps({"kind": _KIND, **about, "files": files}, indent=1) + "\n"
        (self.temporary / MARK).write_text(mark, encoding="utf-8")
        for root, _, names in os.walk(self.temporary, topdown=False):
            for name in names:
                with open(os.path.join(root, name), "rb") as file:
                    os.fsync(file.fileno())
            sync_folder(root)
        self.check()
        if not self.place.exists() or not any(self.place.iterdir()):
            os.rename(self.temporary, self.place)  # in place of an empty folder too
        elif not exchange(self.temporary, self.place):
            # The file system can't exchange two names; between these two renames there is none of that name.
            os.rename(self.place, self.aside)
            try:
                os.rename(self.temporary, self.place)
            except BaseException:
                os.rename(self.aside, self.place)
                raise
        sync_folder(self.place.parent)
        return files

    def _clear(self) -> None:
        """Removes an export that has been replaced, and that stands aside."""
        shutil.rmtree(self.aside, ignore_errors=True)

    def _hold(self) -> int:
        """Makes the temporary folder and locks it, so that of two exports to one place the second is refused."""
        while True:
            make_folder(self.place.parent)
            self.temporary.mkdir(exist_ok=True)
            held = os.open(self.temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                with contextlib.suppress(OSError):  # a file system without locks is used as it is
                    _lock(held, self.out)
                if os.path.samestat(os.fstat(held), os.stat(self.temporary)):
                    return held
            except FileNotFoundError:
                pass  # another export has renamed or removed it meanwhile
            except BaseException:
                os.close(held)
                raise
            os.close(held)


def _lock(held: int, out: Path) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            raise StoreLockedError(f"--out {out}: another export is writing there; wait for it to end") from error
        raise


def _empty(folder: Path) -> None:
    """Removes what a killed export has left in its folder."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _files_of(folder: Path) -> dict[str, int]:
    """Returns the sizes of a folder's files, but for its mark, by their paths in it; an empty folder counts too."""
    found: dict[str, int] = {}
    for root, folders, names in os.walk(folder):
        relative = os.path.relpath(root, folder)
        if not names and not folders:
            found[relative] = 0
        for name in [*names, *(each for each in folders if os.path.islink(os.path.join(root, each)))]:
            path = os.path.normpath(os.path.join(relative, name))
            found[path] = os.lstat(os.path.join(root, name)).st_size
    found.pop(MARK, None)
    return found


def _listed(folder: Path, out: Path) -> dict[str, Any]:
    """Returns the files that the mark of an export lists; raises a ConfigError if the folder is none."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
        if mark.get("kind") == _KIND and isinstance(mark.get("files"), dict):
            return dict(mark["files"])
    raise ConfigError(f"--out {out} is there already, and is no export of embedx; choose another path")


def refusal(out: Path, error: OSError) -> Exception:
    """Turns an OSError about the folder into an error for users."""
    return output_error(out, "can't be written", error, is_store=False)
