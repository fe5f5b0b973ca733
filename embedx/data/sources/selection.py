"""The choice of inputs among files, by ending, first bytes and patterns, and the account of what is left out."""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Sequence

from embedx.data.sources.base import as_text
from embedx.data.sources.kinds import SourceOptions
from embedx.data.sources.table_file import TABLE_SUFFIXES
from embedx.errors import ConfigError

_ANY_FOLDERS = "**"
_NO_ENDING = "without an ending"
_MOST_NAMED = 6
"""The number of endings, or of folders, that a notice names."""
_LONGEST_ENDING = 12
_IMAGE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM.{4}\0{4}|II[*+]\0|MM\0[*+]|P[1-6]\s|RIFF.{4}WEBP"
    rb"|.{4}ftyp(avi[fs]|mi[af]1|msf1|he[iv][cmsx])|\0{3}\x0c(jP  |JXL )\r\n|\xff\x4f\xff\x51|\xff\x0a",
    re.DOTALL,
)
"""The first bytes of images: JPEG, PNG, GIF, BMP, TIFF, PNM, WebP, AVIF and HEIF, JPEG 2000, JPEG XL."""
_JUNK_FOLDERS = frozenset(
    {"__macosx", "lost+found", "@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "@__thumb", "$recycle.bin"}
    | {"recycler", "system volume information", "network trash folder", "temporary items", "__pycache__"}
)
"""The folders, in lower case, that systems make by themselves: macOS's archives and file sharing, ext4's checker,
Synology's and QNAP's thumbnails and bins, Windows's bins, Python. Those with a leading dot are hidden anyway."""
_JUNK_FILES = frozenset({b"thumbs.db", b"ehthumbs.db", b"desktop.ini", b"icon\r"})


class Glob:
    """A pattern of paths below a source, as in `.gitignore`: `*.png`, `labels/`, `2024/**/thumb_?.jpg`.

    A pattern with a slash before its end begins at the source; any other matches at every depth. One that matches a
    folder matches all that is in it. The ending is matched in any case, all else as it is written.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self._folders_only = pattern.endswith("/")
        *parts, last = pattern.strip("/").split("/")
        if "/" not in pattern.rstrip("/"):
            parts = [_ANY_FOLDERS, *parts]
        self._parts = [*parts, _in_any_case(last)]

    @property
    def ending(self) -> str | None:
        """The ending that the pattern names, as `*.png` does, in lower case; None if it names none."""
        ending = os.path.splitext(self.pattern)[1].lower()
        return ending if re.fullmatch(r"\.\w+", ending) else None

    def matches(self, names: Sequence[str], *, is_folder: bool = False) -> bool:
        """Tells whether the pattern matches a file, or a folder, given as the names on its path, or a folder above."""
        return self._match(0, names, is_folder)

    def _match(self, part: int, names: Sequence[str], is_folder: bool) -> bool:
        if part == len(self._parts):
            return bool(names) or is_folder or not self._folders_only
        if not names:
            return False
        if self._parts[part] == _ANY_FOLDERS:
            return any(self._match(part + 1, names[start:], is_folder) for start in range(len(names) + 1))
        return fnmatch.fnmatchcase(names[0], self._parts[part]) and self._match(part + 1, names[1:], is_folder)


class LeftOut:
    """The account of files and folders that are no inputs."""

    def __init__(self) -> None:
        self.files: Counter[str] = Counter()
        """The number of files by the words that say which."""
        self.folders: dict[str, None] = {}

    def add_file(self, name: bytes) -> None:
        """Counts a file by its ending; what systems put beside images is not counted."""
        if name.lower() not in _JUNK_FILES:
            ending = as_text(os.path.splitext(name)[1]).lower()
            short = ending if len(ending) <= _LONGEST_ENDING else f"{ending[:_LONGEST_ENDING]}…"
            self.files[short or _NO_ENDING] += 1

    def add_store(self, names: Sequence[bytes]) -> None:
        """Names a store of embedx's, given as the names on its path below the source."""
        self.folders[f"{as_text(b'/'.join(names))} (a store)"] = None

    def update(self, other: LeftOut) -> None:
        """Adds another account to this one."""
        self.files.update(other.files)
        self.folders.update(other.folders)

    def describe(self) -> str:
        """Returns the account in words, such as `14 .heic, 2 without an ending, the folder @eaDir`; empty for none."""
        counts = [f"{count} {which}" for which, count in self.files.most_common(_MOST_NAMED)]
        if others := self.files.total() - sum(count for _, count in self.files.most_common(_MOST_NAMED)):
            counts.append(f"{others} others")
        if self.folders:
            counts.append(f"the folder{'s' if len(self.folders) > 1 else ''} {listed(sorted(self.folders))}")
        return ", ".join(counts)


class Selection:
    """Chooses the inputs among the files of a folder or tar.

    Args:
        options: The patterns, and the content of the inputs.
        suffixes: The endings of the files to choose instead of those of inputs.
    """

    def __init__(self, options: SourceOptions, suffixes: frozenset[str] | None = None) -> None:
        self.include = [Glob(pattern) for pattern in options.include]
        self.exclude = [Glob(pattern) for pattern in options.exclude]
        asked = {glob.ending for glob in self.include if glob.ending is not None}
        self.suffixes = suffixes or options.suffixes | asked - TABLE_SUFFIXES
        """The endings of inputs; an ending that `--include` names is one too."""
        self._encoded = tuple(map(os.fsencode, self.suffixes))
        self.content = options.content if suffixes is None else "tables"

    def check_source_is_no_store(self, folder: bytes) -> None:
        """Checks that the files of a store, which is the source itself, are not taken for inputs.

        Raises:
            ConfigError: If they would be.
        """
        if self.content != "images":
            path = as_text(folder)
            raise ConfigError(
                f"--data {path} is a store of embedx's, and its files are no inputs; for its rows name the "
                f"shards of a split, as in {path}/train/shard-*.safetensors"
            )

    def takes_folder(self, names: Sequence[bytes], left_out: LeftOut) -> bool:
        """Tells whether to look into a folder, given as the names on its path below the source."""
        text = as_text(names[-1])
        if text.startswith("."):
            return False
        taken = text.lower() not in _JUNK_FOLDERS
        if taken and self.exclude:
            path = [as_text(name) for name in names]
            taken = not any(glob.matches(path, is_folder=True) for glob in self.exclude)
        if not taken:
            left_out.folders[text] = None
        return taken

    def takes_file(
        self, folder: Sequence[bytes], name: bytes, path: bytes | None, left_out: LeftOut, *, named: bool = False
    ) -> bool:
        """Tells whether a file that is not hidden is an input.

        Args:
            folder: The names on its folder's path below the source.
            name: Its own name.
            path: Its path, for a file without an ending, which is looked into; None for one behind a URL.
            left_out: The account to which it is added if it is none.
            named: Whether the user named the file, which is then looked into whatever its ending.
        """
        if (self.include or self.exclude) and (option := self._refusal([*folder, name])) is not None:
            left_out.files[f"by {option}"] += 1
            return False
        if name.lower().endswith(self._encoded):
            return True
        if path is not None and self.content == "images" and (named or b"." not in name) and _is_image(path):
            return True
        left_out.add_file(name)
        return False

    def takes_member(self, name: str, left_out: LeftOut) -> bool:
        """Tells whether the patterns let a tar's member in."""
        option = self._refusal([part.encode("utf-8", "surrogateescape") for part in name.split("/")])
        if option is not None:
            left_out.files[f"by {option}"] += 1
        return option is None

    def _refusal(self, names: Sequence[bytes]) -> str | None:
        """Returns the option whose patterns leave a path out, if there is one."""
        path = [as_text(name) for name in names]
        if any(glob.matches(path) for glob in self.exclude):
            return "--exclude"
        return None if not self.include or any(glob.matches(path) for glob in self.include) else "--include"


def listed(names: Iterable[str]) -> str:
    """Returns names in words: `a`, `a and b`, `a, b and c`; of many only the first ones, and how many more."""
    shown = ["".join(c if c.isprintable() else repr(c)[1:-1] for c in name) for name in names]
    if len(shown) > _MOST_NAMED:
        shown[_MOST_NAMED - 1 :] = [f"{len(shown) - _MOST_NAMED + 1} more"]
    return " and ".join([*([", ".join(shown[:-1])] if shown[:-1] else []), shown[-1]])


def _in_any_case(name: str) -> str:
    """Makes a pattern's ending, such as `.jpg`, one that matches `.JPG` too."""
    stem, dot, ending = name.rpartition(".")
    if not dot or not ending.isalnum():
        return name
    return stem + dot + "".join(f"[{char.lower()}{char.upper()}]" if char.isalpha() else char for char in ending)


def _is_image(path: bytes) -> bool:
    """Tells by its first bytes whether a file is an image; one that can't be read is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a FIFO would wait for ever
        try:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            return regular and _IMAGE.match(os.pread(descriptor, 32, 0)) is not None
        finally:
            os.close(descriptor)
    except OSError:
        return False
