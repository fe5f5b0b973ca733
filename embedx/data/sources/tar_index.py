"""Indexes tar files: the members of each sample and their place in the file; nothing is unpacked."""

from __future__ import annotations

import os
import posixpath
import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from embedx.errors import ConfigError

TEXTS = ("cls", "json", "txt")
"""The extensions of members that are read while the tar is indexed."""
_MEMBER = re.compile(r"(?:\./)*((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
"""WebDataset's rule: the base name ends at the first dot of the last part; a name that begins with a dot is ignored."""
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""The first bytes of compressed files, each with the program that decompresses them by `-d`."""


class Image(NamedTuple):
    """A sample's image, by the name and the place, in bytes, of its member."""

    name: str
    offset: int
    size: int
    whole: bool
    """True if the whole extension is an image's, such as `.jpg`; false for `.left.jpg`."""


class TarIndex:
    """The samples of one tar, in the order of their first members, as a list per column.

    The image of a sample is the member with an image's extension, or else the one whose extension ends in an image's.

    Raises:
        ConfigError: If the file is not a tar, or is compressed, damaged or cut short; if a sample has two images, or
            two members of one kind. The messages continue a sentence that begins with the tar's name.
    """

    def __init__(self, file: BinaryIO, suffixes: frozenset[str]) -> None:
        self._file = file
        self._suffixes = suffixes
        self._rows: dict[str, int] = {}
        self._seconds: dict[int, str] = {}
        """The second images of samples whose images all have an extension like `.left.jpg`, by row."""
        self._faults: list[str] = []
        self.images: list[Image | None] = []
        self.texts: dict[str, list[str | None]] = {extension: [] for extension in TEXTS}
        """The stripped contents of the members in TEXTS, per extension; None where there is none.

        Bytes that are not UTF-8 are `\\xNN` there, as in files' names."""
        self._add_members()
        for row, second in self._seconds.items():
            if (first := self.images[row]) is not None:
                self._fault_two(first.name, second)
        ConfigError.check(self._faults)

    @property
    def bases(self) -> list[str]:
        """The names of the samples; bytes that are not UTF-8 are escaped as surrogates."""
        return list(self._rows)

    def _add_members(self) -> None:
        links: dict[str, list[str]] = {}
        for member in _members(self._file):
            if not (member.isreg() or member.islnk() or member.issym()) or (parts := self._parts(member.name)) is None:
                continue
            self._row(parts[0])
            if member.isreg():
                self._add(member.name, member)
            else:
                folder = posixpath.dirname(member.name) if member.issym() else ""
                links.setdefault(posixpath.normpath(posixpath.join(folder, member.linkname)), []).append(member.name)
        for member in _members(self._file) if links else ():
            if member.isreg():
                for name in links.get(posixpath.normpath(member.name), ()):
                    self._add(name, member)

    def _parts(self, name: str) -> tuple[str, str] | None:
        """Returns base name and lower-case extension of a sample's member; None for any other member."""
        match = _MEMBER.fullmatch(name)
        if match is None:
            return None
        extension = match[2].lower()
        counts = extension in TEXTS or f".{extension.rpartition('.')[2]}" in self._suffixes
        return (match[1], extension) if counts else None

    def _row(self, base: str) -> int:
        row = self._rows.setdefault(base, len(self._rows))
        if row == len(self.images):
            self.images.append(None)
            for column in self.texts.values():
                column.append(None)
        return row

    def _add(self, name: str, member: tarfile.TarInfo) -> None:
        """Adds a member under its own name or the name of a link to it."""
        base, extension = self._parts(name) or ("", "")
        row = self._row(base)
        if member.issparse():
            self._faults.append(f"{member.name!r} is stored with holes; make the tar again without --sparse")
        elif extension not in TEXTS:
            self._add_image(row, Image(name, member.offset_data, member.size, f".{extension}" in self._suffixes))
        elif self.texts[extension][row] is not None:
            self._faults.append(f"{name!r} is the second .{extension} of its sample; take one out")
        else:
            self._file.seek(member.offset_data)
            text = self._file.read(member.size).decode("utf-8-sig", "backslashreplace").strip() or None
            self.texts[extension][row] = text

    def _add_image(self, row: int, image: Image) -> None:
        old = self.images[row]
        if old is None or (image.whole and not old.whole):
            self.images[row] = image
            self._seconds.pop(row, None)
        elif image.whole:
            self._fault_two(old.name, image.name)
        elif not old.whole:
            self._seconds[row] = image.name

    def _fault_two(self, first: str, second: str) -> None:
        self._faults.append(
            f"{first!r} stands in it twice; take one out"
            if first == second
            else f"{first!r} and {second!r} are two images of one sample, as their names are the same up to the first "
            "dot; give each a name of its own"
        )


def _members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yields the members, header by header."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    begin = file.read(tarfile.BLOCKSIZE)
    for magic, program in _COMPRESSED.items():
        if begin.startswith(magic):
            raise ConfigError(f"is compressed, and can't be read in place; decompress it by {program} -d first")
    last, position = "", 0
    try:
        archive = tarfile.TarFile(fileobj=file, encoding="utf-8", errors="surrogateescape")
        while position + tarfile.BLOCKSIZE <= end:
            file.seek(position)
            if not any(file.read(tarfile.BLOCKSIZE)):  # the end mark
                _check_nothing_follows(file)
                return
            # TarFile's own iteration takes damage for the end, and keeps every header in memory.
            file.seek(position)
            member = tarfile.TarInfo.fromtarfile(archive)
            last, begun, position = member.name, position, archive.offset
            if not begun < position <= end:
                break
            yield member
    except (tarfile.TarError, ValueError, OverflowError) as error:
        if not last:
            raise ConfigError(f"is no tar ({error})") from error
        raise ConfigError(
            f"is damaged or cut short at byte {position}, behind {last!r} ({error}); fetch or make it again"
        ) from error
    if not last:
        raise ConfigError("is no tar: it is shorter than a header, or has no end mark")
    raise ConfigError(
        f"is cut short: it ends at byte {end}, in or behind {last!r}, without a tar's end mark; fetch or make it again"
    )


def _check_nothing_follows(file: BinaryIO) -> None:
    while rest := file.read(1 << 20):
        if any(rest):
            raise ConfigError("continues after its end, as tars joined by cat do; give them one by one")
