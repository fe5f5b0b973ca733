"""The folder in which a table's relative paths begin."""

from __future__ import annotations

import os
import re

from embedx.data.reading.files import absolute, check_urls, is_url, plain_name
from embedx.errors import ConfigError
from embedx.paths import path_of_file_url

_CHAIN = re.compile(r"(?!https?://)([\w+.-]+://.*::|([\w+.-]+::)+[\w+.-]+://)", re.IGNORECASE | re.DOTALL)
"""A URL of several schemes, as fsspec reads it; a web server's own URL may have `::` in it."""


class Root:
    """The folder, by path or URL, in which relative paths begin; if closed, paths that lead out of it are refused.

    They are judged by their text; links are not resolved.
    """

    def __init__(self, folder: str, *, closed: bool) -> None:
        self.folder = _normal(absolute(folder))
        self.closed = closed

    @classmethod
    def of(cls, location: str, root: str | None) -> Root:
        """Takes the folder given as `--root`, or else the folder of the table.

        Raises:
            ConfigError: If there is no such folder.
        """
        if root is None:
            return cls(os.path.dirname(plain_name(location)), closed=False)
        check_urls([root])
        if not is_url(root) and not os.path.isdir(root):
            raise ConfigError(f"--root {root}: there is no such folder; give the one that the table's paths begin in")
        return cls(root, closed=True)

    def locate(self, path: str) -> str:
        r"""Returns the absolute path, or URL, of a path in a table.

        A path with `\\` for which there is no file is one of Windows, if there is a file with `/` in their place.

        Raises:
            ValueError: If it leads out of a closed root, has a NUL byte, is a `file:` URL of another machine, or a
                chain of file systems such as `simplecache::file://…`, which a table's author may not set up.
        """
        if "\0" in path:
            raise ValueError(f"{path!r} has a NUL byte, as no path has")
        if path[:7].lower() == "file://":
            path = path_of_file_url(path)
        elif _CHAIN.match(path):
            raise ValueError(f"{path!r} chains file systems by `::`; name the file or its URL itself")
        whole = self._whole(path)
        if "\\" in path and not is_url(whole) and not os.path.lexists(whole):
            slashed = self._whole(path.replace("\\", "/"))
            return slashed if os.path.lexists(slashed) else whole
        return whole

    def _whole(self, path: str) -> str:
        whole = path if path.startswith("/") or is_url(path) else f"{self.folder.rstrip('/')}/{path}"
        if not self.closed:
            # No server takes `..` in a URL for the folder above.
            return _normal(whole) if is_url(self.folder) and not is_url(path) and ".." in path.split("/") else whole
        whole = _normal(whole)
        if not _normal(plain_name(whole)).startswith(plain_name(self.folder).rstrip("/") + "/"):
            raise ValueError(f"{path!r} leads out of --root {self.folder}")
        return whole


def _normal(location: str) -> str:
    """Removes `.`, `..` and doubled slashes."""
    begin = location.index("://") + 3 if is_url(location) else 0
    return location[:begin] + os.path.normpath(location[begin:])
