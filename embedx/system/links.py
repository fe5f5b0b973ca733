"""Lists a folder on a web server by the links of its pages, which may be endless: within bounds, and each page once."""

from __future__ import annotations

import errno
import html
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import unquote, urljoin

LONGEST_PAGE = 64 << 20
"""The largest number of bytes of a page."""
_DEEPEST = 32
"""The largest number of folders below the one that is listed, one in the other."""
_MOST_PAGES = 20_000
_MOST_FILES = 1_000_000
_LINK = re.compile(rb"""<a\b[^<>]{0,4096}?\bhref\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'<>]+))""", re.IGNORECASE)

Page = Callable[[str], bytes]
"""Reads a page; raises an OSError if it can't be read."""


class ListedFile(NamedTuple):
    """A file in the listing of a folder."""

    url: str
    path: str
    """The path below the folder that was listed."""
    size: int | None
    mtime_ns: int | None


def listed_by_links(url: str, page: Page, depth: int | None = None) -> Iterator[ListedFile]:
    """Yields the files to which a server's page of a folder links, and those of the folders below.

    Args:
        url: The URL of the folder.
        page: The function that reads a page.
        depth: The number of folders, one in the other, to go down to; None goes down to all.

    Raises:
        OSError: If a page can't be read, or the folders, pages or files don't end.
    """
    root = re.split("[?#]", url)[0].rstrip("/") + "/"
    waiting, seen, files = [root], {root}, 0
    while waiting:
        folder = waiting.pop()
        for link in sorted(_links(page(folder), folder, root) - seen):
            seen.add(link)
            below = unquote(link.removeprefix(root))
            if not re.split("[?#]", link)[0].endswith("/"):
                files += 1
                yield ListedFile(link, below, None, None)
            elif (deep := below.count("/")) <= (_DEEPEST if depth is None else depth):
                waiting.append(link)
            elif depth is None:
                raise _endless(f"folders more than {deep - 1} deep", link)
        if len(seen) - files > _MOST_PAGES:
            raise _endless(f"more than {_MOST_PAGES:,} folders", folder)
        if files > _MOST_FILES:
            raise _endless(f"more than {_MOST_FILES:,} files", folder)


def matching_links(pattern: str, page: Page) -> list[str]:
    """Returns the files that a pattern with wildcards names, sorted; `**` stands for folders of any depth."""
    plain, _, query = pattern.partition("?")
    root = re.split(r"[*\[]", plain, maxsplit=1)[0].rpartition("/")[0]
    depth = None if "**" in plain else plain.removeprefix(f"{root}/").count("/")
    wanted = re.compile(_as_regex(plain))
    found = (file.url for file in listed_by_links(root, page, depth))
    return sorted(link + (f"?{query}" if query else "") for link in found if wanted.fullmatch(link.partition("?")[0]))


def _links(page: bytes, folder: str, root: str) -> set[str]:
    """Returns the links of a page that lead below the root, but to no other order of the same page."""
    found = set()
    for match in _LINK.finditer(page):
        text = html.unescape(next(filter(None, match.groups()), b"").decode("utf-8", "replace")).strip()
        try:
            link = urljoin(folder, text).partition("#")[0]
        except ValueError:  # such as a bracket that nothing closes
            continue
        link = root.partition("://")[0] + "://" + link.partition("://")[2]
        path = link.partition("?")[0]
        if path.startswith(root) and path != folder and "/../" not in unquote(f"/{path.removeprefix(root)}/"):
            found.add(link if not path.endswith("/") else path)
    return found


def _as_regex(pattern: str) -> str:
    """Returns a pattern of a shell as a regular expression in which only `**` matches a slash."""
    parts = re.split(r"(\*\*/|\*\*|\*|\[[^\]/]+\])", pattern)
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    return "".join(
        wild.get(part) or (re.sub(r"^\[!", "[^", part) if re.fullmatch(r"\[[^\]/]+\]", part) else re.escape(part))
        for part in parts
    )


def _endless(what: str, link: str) -> OSError:
    advice = "name a folder further below, or list the files in a table"
    return OSError(errno.EFBIG, f"its server's pages lead to {what}, such as {link}: {advice}")
