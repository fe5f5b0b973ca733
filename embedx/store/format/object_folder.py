"""A store whose files are objects in a bucket; every object is written whole, by one request.

A store that takes an older one's place there has its files in a folder of their own, a generation, as a bucket can't
exchange folders. The manifest at the store's place says which generation is the store. It is the last to be written, in
the place of the manifest before it and of no other.
"""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import io
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

from embedx.errors import StoreError
from embedx.names import GENERATION, INDEX, LOCK, MANIFEST, PROBE
from embedx.paths import BucketPath
from embedx.store.format.fetched import OF_ALL_STORES, Fetched, Tally
from embedx.store.format.generation import generation_in
from embedx.store.format.object_cache import ObjectCache
from embedx.store.format.object_copy import ObjectCopy
from embedx.store.format.object_stream import ObjectStream
from embedx.store.format.store_folder import StoreFolder
from embedx.system import objects
from embedx.system.objects import StatedObject
from embedx.system.passing import is_absence
from embedx.system.remote_errors import not_read

_BUFFER = 4 * 1024**2
_PAGE = 1000
"""The objects of which one request lists the names."""
_MANY_SIZES = 8
"""The number of files above which listing their folders costs less than asking for the size of each."""
_FINAL = (".parquet", ".safetensors")
"""The ends of the names of files that don't change, but for being written or removed here."""
_DESCRIPTORS = "/dev/fd"
"""The folder in which each open file of this process has a path, its descriptor's number."""
_OF_THE_WHOLE = (MANIFEST, LOCK, PROBE)
"""The files that are at the store's place itself, whatever generation it has."""


class ObjectFolder(StoreFolder):
    """A store in a bucket.

    Args:
        place: The place of the store.
        generation: The name of the folder in which its files are, but for those of the whole; empty if they are at the
            place itself; None if the manifest has to be asked.
    """

    def __init__(self, place: BucketPath, generation: str | None = None) -> None:
        self.path: BucketPath = place
        self._generation = generation
        self.manifest_version: str | None = None
        """The version of the manifest that was read or written here, which alone may be replaced; None for none."""
        self._sizes: dict[str, int] = {}
        """The sizes of the files that were listed."""
        self._cache = ObjectCache(self._fetch, self.size_of)
        self._tally = Tally(OF_ALL_STORES)

    is_remote = True

    @property
    def fetched(self) -> Fetched:  # type: ignore[override]  # read alone
        """The amount that was fetched so far by this folder."""
        return self._tally.sum()

    def __reduce__(self) -> tuple[type[ObjectFolder], tuple[BucketPath, str | None]]:
        """Sends the place alone to another process, which asks the bucket itself."""
        return ObjectFolder, (self.path, self._generation)

    def close(self) -> None:
        """Does nothing, as nothing is held."""

    # As a place for writing and reading (see `storage.Storage`)

    def put_new(self, relative: str, parts: Sequence[bytes | memoryview], sha256: str | None = None) -> bool:
        """Creates a file, whose sha256 may be known; returns False if there is one."""
        data = b"".join(parts)
        self._forget(relative)
        return objects.put_new(self.url_of(relative), data, sha256 or hashlib.sha256(data).hexdigest())

    def put(self, relative: str, parts: Sequence[bytes | memoryview]) -> None:
        """Writes a file, in the place of one that may be there."""
        self._forget(relative)
        objects.put(self.url_of(relative), b"".join(parts))

    def put_manifest(self, data: bytes, generation: str) -> None:
        """Writes the manifest in the place of the one that was read, and of no other.

        Args:
            data: The bytes of the manifest.
            generation: The name of the folder that it names; empty for none.

        Raises:
            StoreError: If another run has written it meanwhile.
        """
        url, version = str(self.path / MANIFEST), self.manifest_version
        sha256 = hashlib.sha256(data).hexdigest()
        written = objects.put_new(url, data, sha256) if version is None else objects.put(url, data, replacing=version)
        stated = self.stat(MANIFEST) if written else None
        if stated is None or stated.sha256 not in (None, sha256):  # of a run that was stopped for long right here
            raise StoreError(f"another run has changed {self.path} meanwhile; run the same command again")
        self._generation, self.manifest_sha256 = generation, sha256
        self.manifest_version = stated.version

    def version_of(self, relative: str) -> str | None:
        """Returns the version of a file; None if there is none."""
        stated = self.stat(relative)
        return None if stated is None else stated.version

    def read(self, relative: str) -> bytes:
        """Reads a file; errors as by `open_file`."""
        if relative in self._sizes and relative.endswith(_FINAL):
            return self._cache.read(relative, 0, self._sizes[relative])
        with self._told(relative):
            data = objects.read(self.url_of(relative))
        self._tally.add(len(data))
        if relative == MANIFEST and self._generation is None:
            self._generation = generation_in(data)
        return data

    def read_range(self, relative: str, start: int, stop: int) -> bytes:
        """Reads the bytes from `start` up to `stop` of a file; errors as by `open_file`."""
        if relative.endswith(_FINAL):
            return self._cache.read(relative, start, stop)
        return self._fetch(relative, start, stop)

    def _fetch(self, relative: str, start: int, stop: int) -> bytes:
        if start >= stop:
            return b""
        with self._told(relative):
            data = objects.read(self.url_of(relative), start, stop - start)
        self._tally.add(len(data))
        if len(data) < stop - start:
            raise self.fault(f"{self / relative}: has {start + len(data)} bytes, and not {self._sizes.get(relative)}")
        return data

    def _forget(self, relative: str) -> None:
        self._sizes.pop(relative, None)
        self._cache.forget(relative)

    def size(self, relative: str) -> int | None:
        """Returns a file's number of bytes; None if there is none."""
        self._tally.add()
        with self._told(relative):
            return objects.size(self.url_of(relative))

    def list(self, below: str = "") -> Iterator[str]:
        """Yields the path of each file of the store below a folder of it, in order."""
        yield from self.stated(below)

    def stated(self, below: str = "") -> dict[str, StatedObject]:
        """Returns what the server says of each file below a folder of the store, by its path, in order."""
        folder = self.path / self.generation if self.generation else self.path
        with self._told(below or "."):
            found = [*objects.listed(str(folder / below if below else folder))]
        own = ((name, stated) for name, stated in found if not name.startswith(GENERATION))
        files = {f"{below}/{name}" if below else name: stated for name, stated in own}
        self._sizes |= {path: stated.size for path, stated in files.items()}
        self._tally.add(requests=1 + len(found) // _PAGE)
        return files

    def names(self) -> builtins.list[str]:
        """Returns the names of the files and folders in the store's folder."""
        with self._told("."):
            return objects.names(str(self.path / self.generation if self.generation else self.path))

    def remove(self, relative: str) -> None:
        """Removes a file, if there is one."""
        self._forget(relative)
        objects.remove(self.url_of(relative))

    def stat(self, relative: str) -> StatedObject | None:
        """Returns what the server says of a file; None if there is none."""
        self._tally.add()
        with self._told(relative):
            return objects.stat(self.url_of(relative))

    def url_of(self, relative: str) -> str:
        """Returns the URL of a file."""
        is_of_whole = relative in _OF_THE_WHOLE or not self.generation  # which asks the manifest only where it matters
        return str(self.path / relative if is_of_whole else self.path / self.generation / relative)

    @property
    def generation(self) -> str:
        """The name of the folder with the store's files; empty if they are at its place itself."""
        if self._generation is None:
            try:
                self._tally.add()
                self._generation = generation_in(objects.read(str(self.path / MANIFEST)))
            except OSError as error:
                if not is_absence(error):
                    raise StoreError(not_read(self.path / MANIFEST, error)) from error
                self._generation = ""
        return self._generation

    def take_generation(self, manifest: bytes) -> None:
        """Takes the name of the generation from the manifest that was read, unless it was given or asked for before."""
        if self._generation is None:
            self._generation = generation_in(manifest)

    # As a store that is held open

    def is_current(self) -> bool:
        """Tells whether the manifest is the one that was read; without one, nothing tells another store."""
        if self.manifest_sha256 is None:
            return True
        self._tally.add()
        try:
            return hashlib.sha256(objects.read(self.url_of(MANIFEST))).hexdigest() == self.manifest_sha256
        except OSError as error:
            return not is_absence(error)  # one that can't be reached is not replaced

    def open_file(self, relative: str) -> BinaryIO:
        """Opens a file, of which ranges are fetched where they are read."""
        return io.BufferedReader(ObjectStream(relative, self.size_of(relative), self.read_range), _BUFFER)

    def copy_of(self, opened: BinaryIO) -> ObjectCopy:
        """Returns the copy on this machine of an open file, by which it is read from then on."""
        stream = opened.raw  # type: ignore[attr-defined]  # as `open_file` makes it
        if stream.copy is None:
            stream.copy = self._cache.copy(stream.relative)
        copy: ObjectCopy = stream.copy
        return copy

    def bring(self, opened: BinaryIO) -> None:
        """Brings all of an open file to this machine."""
        self.copy_of(opened).bring()

    @contextlib.contextmanager
    def path_of(self, relative: str, opened: BinaryIO) -> Iterator[str]:
        """Yields the path of a copy on this machine; it has what was brought (see `ObjectCopy.bring`)."""
        yield f"{_DESCRIPTORS}/{self.copy_of(opened).descriptor}"

    def learn_sizes(self, relatives: Iterable[str]) -> None:
        """Lists the folders of files whose sizes are not known: that of index tables, and others for several files."""
        unknown = Counter(path.partition("/")[0] for path in relatives if path not in self._sizes)
        for folder, count in unknown.items():
            if folder == INDEX or count > _MANY_SIZES:
                self.stated(folder)

    def size_of(self, relative: str) -> int:
        """Returns a file's number of bytes, as it was listed or as the server says."""
        if relative not in self._sizes:
            size = self.size(relative)
            if size is None:
                raise self.fault(f"{self / relative}: can't be read (not found)") from FileNotFoundError()
            self._sizes[relative] = size
        return self._sizes[relative]

    def has(self, relative: str) -> bool:
        """Tells whether there is such a file."""
        return self.size(relative) is not None

    def files(self, relative: str = ".") -> builtins.list[str]:
        """Returns the names of the files in a folder of the store."""
        below = "" if relative == "." else relative
        return [posixpath.basename(path) for path in self.list(below) if posixpath.dirname(path) == below]

    def walk(self) -> Iterator[tuple[str, builtins.list[str]]]:
        """Yields each folder of the store, and the names of its files."""
        folders: dict[str, builtins.list[str]] = {".": []}
        for path in self.list():
            folder, name = posixpath.split(path)
            folders.setdefault(folder or ".", []).append(name)
        yield from sorted(folders.items())

    @contextlib.contextmanager
    def _told(self, relative: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            message = not_read(self / relative, error)
            raise (self.fault(message) if is_absence(error) else StoreError(message)) from error
