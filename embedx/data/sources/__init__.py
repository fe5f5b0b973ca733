"""Sources of inputs, one module per kind; `parse_data` opens those that `--data` names."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence, Set
from typing import Self

from embedx.data.reading.files import FileReader, RejectedInputError, check_urls, is_url
from embedx.data.sources import dataset, folder, image_files, stdin, tables, tar
from embedx.data.sources import feature_files as features
from embedx.data.sources.base import RangeReader, Reader, Run, RunReader, Source
from embedx.data.sources.joined import join
from embedx.data.sources.kinds import SourceKind, SourceOptions
from embedx.data.sources.patterns import find_files, first_file, is_pattern
from embedx.errors import ConfigError
from embedx.names import RESERVED_SPLITS
from embedx.paths import expand_path
from embedx.values import MAX_BYTES

_KINDS = (stdin.KIND, dataset.KIND, tables.KIND, tar.KIND, features.KIND, image_files.KIND, folder.KIND)
"""The kinds of source in the order in which they are tried; the folder is last, because any text can name one."""

_MOST_FAULTS = 20
"""The number of faults after which no further source is opened."""


def parse_data(specs: Sequence[str], options: SourceOptions | None = None) -> dict[str, Source]:
    """Opens the values of `--data`, each `[NAME=]SOURCE`, as one source per split.

    Sources of the same split are joined in the order in which they are given.

    Raises:
        ConfigError: If there are faults; it names the first 20: a source that does not exist, a split name that is
            empty, reserved or differs from another in case alone, an option that applies to none of the sources.
    """
    options = options or SourceOptions()
    parts: dict[str, list[tuple[str, Source]]] = {}
    twins: dict[str, str] = {}
    faults: list[str] = []
    used: set[SourceKind] = set()
    for name, locations in _gathered(specs, faults):
        if len(faults) >= _MOST_FAULTS:  # as each is looked into, and nobody reads thousands
            raise ConfigError([*faults[:_MOST_FAULTS], "and perhaps more, as the rest was not looked at"])
        location = locations[0]
        spec = location if name is None else f"{name}={location}"
        kind = image_files.KIND if len(locations) > 1 else _kind_of(first_file(location))
        if kind.once and kind in used:
            faults.append(f"--data {spec}: {location} can be read only once; give it to one split")
            continue
        used.add(kind)
        try:
            many = kind.open_many
            named = many(name, locations, options) if many else kind.open(name, location, options)
        except ConfigError as error:
            faults += error.faults
            continue
        for split, source in named.items():
            if (twin := twins.setdefault(split.lower(), split)) != split:
                faults.append(
                    f"--data {spec}: the splits {twin!r} and {split!r} differ in case alone, and not every file "
                    "system can tell them apart; rename one"
                )
            elif not split or split.lower() in RESERVED_SPLITS or not _is_text(split):
                faults.append(f"--data {spec}: a split can't be named {split!r}; choose another name")
            parts.setdefault(split, []).append((location, source))
    read = frozenset[str]().union(
        *(kind.options for kind in used), *(source.options for some in parts.values() for _, source in some)
    )
    ConfigError.check(faults + _unused_options(options, read))
    reader = LocationReader(options)
    return {split: join(split, sources, reader, _advice(sources[-1][0])) for split, sources in parts.items()}


class LocationReader:
    """Reads the inputs of any source by their places, as a plan or an index table has them; picklable.

    It keeps the reader of the location read last.
    """

    def __init__(self, options: SourceOptions) -> None:
        self.options = options
        self._place: tuple[bytes, bool] | None = None
        self._reader: Reader = FileReader()

    def __reduce__(self) -> tuple[type[Self], tuple[SourceOptions]]:
        return type(self), (self.options,)

    def read(self, path: bytes, offset: int | None, size: int | None, most: int = MAX_BYTES) -> bytes:
        """Returns the bytes of an input; raises a RejectedInputError if it can't be read."""
        return self._reader_of(path, whole=offset is None).read(path, offset, size, most)

    def read_run(self, path: bytes, first: int, count: int, most: int = MAX_BYTES) -> Run:
        """Returns a run of inputs; raises a RejectedInputError if its file has none, or one of them can't be read."""
        reader = self._reader_of(path, whole=False)
        if not isinstance(reader, RunReader):
            raise RejectedInputError("its inputs are read one by one")
        return reader.read_run(path, first, count, most)

    def is_range(self, path: bytes, offset: int | None) -> bool:
        """Tells whether an input is the bytes of a file, or of a part of it, as they are."""
        try:
            reader = self._reader_of(path, whole=offset is None)
        except RejectedInputError:
            return False
        return isinstance(reader, RangeReader) and reader.is_range(path, offset)

    def _reader_of(self, path: bytes, *, whole: bool) -> Reader:
        if (path, whole) != self._place:
            try:
                self._reader, self._place = self._find(os.fsdecode(path), whole=whole), (path, whole)
            except ConfigError as error:
                raise RejectedInputError(str(error)) from error
        return self._reader

    def _find(self, location: str, *, whole: bool) -> Reader:
        kind = _kind_of(location)
        if kind.reader is None or (whole and kind is not tar.KIND):  # a tar's sample without an image has no offset
            return FileReader()
        return kind.reader(location, self.options)


def _gathered(specs: Sequence[str], faults: list[str]) -> list[tuple[str | None, list[str]]]:
    """Returns the names of splits and the locations of sources; images named one by one are one source a split.

    A pattern of images or folders stands for what it matches, as if a shell had expanded it.
    """
    gathered: list[tuple[str | None, list[str]]] = []
    images: dict[str | None, list[str]] = {}
    for spec in specs:
        try:
            name, given = _parse_spec(spec)
            is_expanded = is_pattern(given) and _kind_of(first_file(given)) in (image_files.KIND, folder.KIND)
            locations = find_files(given) if is_expanded else [given]
        except ConfigError as error:
            faults += error.faults
            continue
        if "**" in given and is_expanded:  # its folders hold the files that it matches too
            locations = [location for location in locations if not os.path.isdir(location)]
        for location in locations:
            is_image = not os.path.isdir(location) if is_expanded else _kind_of(location) is image_files.KIND
            if is_image and name in images:
                images[name].append(location)
                continue
            gathered.append((name, [location]))
            if is_image:
                images[name] = gathered[-1][1]
    return gathered


def _is_text(name: str) -> bool:
    """Tells whether a name is Unicode throughout; bytes of an argument that are not are halves of surrogates."""
    return name == name.encode("utf-8", "replace").decode()


def _kind_of(location: str) -> SourceKind:
    return next(kind for kind in _KINDS if kind.matches(location))


def _advice(location: str) -> str:
    return (
        f"give each of its sources a split of its own, as in NAME={location}, or, of folders, the folder above them, "
        "so that keys begin with the folders' names, or, of tables, a column of unique names by --key-column"
    )


def _unused_options(options: SourceOptions, read: Set[str]) -> list[str]:
    faults = []
    for name in sorted(frozenset[str]().union(*(kind.options for kind in _KINDS))):
        if getattr(options, name) != getattr(SourceOptions(), name) and name not in read:
            plurals = " and ".join(kind.plural for kind in _KINDS if name in kind.options)
            faults.append(f"--{name.replace('_', '-')} is for {plurals}, and no source is of that kind")
    return faults


def _parse_spec(spec: str) -> tuple[str | None, str]:
    """Splits NAME=SOURCE and expands the source; a name has no `/`, `:` or `?`, and a spec that exists has no name.

    Raises:
        ConfigError: If there is no source, it can't be expanded, or it is a URL whose scheme can't be read.
    """
    name, equals, location = spec.partition("=")
    named = equals and not re.search("[/:?]", name) and not os.path.exists(first_file(spec))
    if not (location if named else spec):
        raise ConfigError(f"--data {spec!r} names no source; give NAME=SOURCE, such as a folder")
    try:
        location = expand_path(location if named else spec)
    except ValueError as error:
        raise ConfigError(f"--data {error}") from error
    check_urls([location])
    return name if named else None, _pinned(location)


def _pinned(location: str) -> str:
    """Returns a URL with the commit in place of a branch, so that all that is read is of one state of the data."""
    if not is_url(location):
        return location
    from embedx.system import remote

    try:
        return remote.pinned(location)
    except OSError as error:
        raise ConfigError(f"--data {location}: {error.strerror}; check its name and your access to it") from error
