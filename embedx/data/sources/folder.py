"""A folder of images, or of files with one input's features each."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from embedx.data.reading.files import FileReader, is_url
from embedx.data.sources.base import SINGLE_SPLIT, TARGET, Source, as_text, samples_table
from embedx.data.sources.folder_files import Folder, FolderSlice, LocalFolder, in_chunks
from embedx.data.sources.kinds import SourceKind, SourceOptions
from embedx.data.sources.remote_folder import RemoteFolder
from embedx.data.sources.selection import LeftOut, Selection
from embedx.data.sources.structure import Structure, read_structure
from embedx.data.sources.table_file import TABLE_SUFFIXES
from embedx.data.sources.table_parts import check_lake, parts_of_folder
from embedx.data.sources.tables import open_parts
from embedx.errors import ConfigError

_METADATA = ("class", "parent")


def open_folder(name: str | None, location: str, options: SourceOptions) -> Mapping[str, Source]:
    """Opens a folder as one or several splits, or, if it holds tables and no inputs, as the table that they are.

    Without a name, `read_structure` tells the splits from the names of the sub-folders; a folder in which it finds none
    is the split `all`. Folders that systems make by themselves, hidden ones and stores of embedx's are left out.

    Each split is searched recursively, files sorted by name, folder by folder. The key is the path below the split's
    folder; the target is the class. Metadata: `class`, the first folder below it, and `parent`, the folders between it
    and the file; both null for a file in the split's folder itself.

    Raises:
        ConfigError: If there is no such folder, or it can't be listed.
    """
    selection = Selection(options)
    root: Folder
    if is_url(location):
        root = _remote_folder(location, selection)
    else:
        _check_folder(location, Path(location))
        root = LocalFolder(os.fsencode(os.path.abspath(location)), selection)
    tables = [] if root.holds_inputs() else _tables(root.choosing(Selection(options, TABLE_SUFFIXES)))
    if parts := parts_of_folder(location, tables):
        check_lake(location, root.has)
        return open_parts(name, location, parts, options)
    beside = LeftOut()
    structure = Structure({name: ()}) if name is not None else read_structure(location, root, beside)
    listing = _Listing(location, selection, structure.notice, beside)
    splits = structure.splits or {SINGLE_SPLIT: ()}
    return {split: listing.source(split, root, names) for split, names in splits.items()}


class _Listing:
    """The listing of a source, which accounts for what it leaves out of all splits together.

    Args:
        location: The source as `--data` names it.
        selection: The choice of inputs.
        structure: The way in which its splits were read, in words.
        beside: The account of what is left out beside the splits.
    """

    def __init__(self, location: str, selection: Selection, structure: str, beside: LeftOut) -> None:
        self._location = location
        self._selection = selection
        self._structure = structure
        self._left_out: dict[str | None, LeftOut] = {None: beside}
        self._notices: list[str] = []

    def source(self, split: str, folder: Folder, names: Iterable[bytes]) -> Source:
        """Returns the source of one split, in the folder that has these names on its path."""
        place = self._location
        for name in names:
            folder, place = folder.enter(name), f"{place.rstrip('/')}/{as_text(name)}"
        return Source(_METADATA, FileReader(), lambda: self._scan(split, folder, place), notices=self._notices)

    def _scan(self, split: str, folder: Folder, place: str) -> pa.Table:
        left_out = self._left_out[split] = LeftOut()
        tables = [_table(some, folder) for some in in_chunks(folder.slices(left_out))]
        if not tables:
            others = f"; left out: {text}" if (text := left_out.describe()) else ""
            named = " ".join(sorted(self._selection.suffixes))
            others_named = " ".join(sorted(suffix for suffix in TABLE_SUFFIXES if not suffix.endswith(".gz")))
            raise ConfigError(
                f"no {self._selection.content} in {place}; looked for files named {named}, and for tables named "
                f"{others_named}{others}"
            )
        total = LeftOut()
        for each in self._left_out.values():
            total.update(each)
        said = [self._structure, f"left out: {text}" if (text := total.describe()) else ""]
        self._notices[:] = [f"--data {self._location}: {'; '.join(filter(None, said))}"] if any(said) else []
        return pa.concat_tables(tables)


def _tables(folder: Folder) -> list[tuple[str, str]]:
    """Returns the locations of tables and their paths below the folder."""
    return [
        (os.fsdecode(path), os.fsdecode(name))
        for part in folder.slices(LeftOut())
        for path, name in zip(part.paths, _joined(part), strict=True)
    ]


def _table(slices: list[FolderSlice], folder: Folder) -> pa.Table:
    paths = pa.chunked_array([pa.array([path for part in slices for path in part.paths], pa.binary())])
    sizes, times = folder.sizes_and_times(slices)
    folders = [[as_text(name) for name in part.folder] for part in slices]
    slice_of = pa.array(np.repeat(np.arange(len(slices)), [len(part.names) for part in slices]))
    classes = pa.array([parts[0] if parts else None for parts in folders], pa.string()).take(slice_of)
    columns = {
        "key": [as_text(key) for part in slices for key in _joined(part)],
        "path": paths,
        "size": sizes,
        "mtime_ns": times,
        TARGET: classes,
        "class": classes,
        "parent": pa.array(["/".join(parts) or None for parts in folders], pa.string()).take(slice_of),
    }
    return samples_table(columns, pa.string())


def _joined(part: FolderSlice) -> Iterator[bytes]:
    prefix = b"".join(name + b"/" for name in part.folder)
    return (prefix + name for name in part.names)


def _remote_folder(url: str, selection: Selection) -> RemoteFolder:
    from embedx.system import remote

    try:
        return RemoteFolder.of(remote.list_files(url), selection)
    except OSError as error:
        raise ConfigError(
            f"--data {url}: can't be listed ({error.strerror}); check its name and your access to it"
        ) from error


def _check_folder(spec: str, path: Path) -> None:
    if os.path.isdir(path):
        return
    if os.path.exists(path):
        raise ConfigError(f"--data {spec}: {path} is a file; give a folder of images, or a table such as .csv")
    if os.path.islink(path):
        raise ConfigError(f"--data {spec}: {path} is a link that leads to no folder; mend the link, or give the folder")
    siblings = os.listdir(path.parent) if os.path.isdir(path.parent) else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f"did you mean {path.parent / near[0]}?" if near else "give a folder of images, or NAME=FOLDER"
    raise ConfigError(f"--data {spec}: there is no folder {path}; {hint}")


KIND = SourceKind(lambda location: True, open_folder, plural="folders", options=frozenset({"include", "exclude"}))
