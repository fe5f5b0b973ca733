"""The files of an approximate index, in the store's folder or another one.

    store/@faiss/embeddings-1f2e3d4c5b6a7988.faiss   the index, which faiss itself can read
    store/@faiss/embeddings.json                     its facts, written last: they name the file and its sha256

No split has a folder of that name, as `@` is percent-encoded there; `embedx verify` leaves such files alone, and an
update of the store takes them along. The facts name the sha256 of the manifest that the rows are of.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from embedx.errors import ConfigError, NotAStoreError, StoreError, StoreReplacedError
from embedx.names import EMBEDDINGS
from embedx.paths import StorePath
from embedx.store.format.atomic import make_folder, sync_folder, write_atomic
from embedx.store.format.layout import folder_name
from embedx.store.format.open_folder import open_folder
from embedx.store.format.store_folder import StoreFile
from embedx.store.format.typed_json import parse_json, typed
from embedx.store.reading.reader import Store
from embedx.vectors.indexing.ann_config import IndexConfig
from embedx.vectors.indexing.faiss_jobs import WrittenIndex
from embedx.vectors.indexing.index_factory import default_factory

FOLDER: Final = "@faiss"
"""The folder of a store's indexes."""
FORMAT: Final = 1
NEIGHBOURS: Final = 10
"""The number of neighbours that recall is measured of."""
_DIGITS = 16
_FILE = re.compile(r"[^/\0]+-[0-9a-f]{16}\.faiss")


class DepthSetting(NamedTuple):
    """The value of the parameter that says how much of an index a search looks at."""

    name: str
    """The parameter's name in faiss, such as `nprobe`."""
    value: int
    """The value with which recall was measured."""
    most: int
    """The value at which a search looks at all there is."""


class IndexFacts(NamedTuple):
    """The facts of an approximate index, as they stand in its JSON file."""

    format: int
    """The version of these files, 1."""
    manifest_sha256: str
    """The sha256 of the manifest of the store that the rows are of."""
    name: str
    """The name of the tensor."""
    splits: list[str]
    """The splits, in the order in which their rows are numbered."""
    rows: int
    """The number of rows of these splits, N."""
    indexed: int
    """The number of rows in the index: those that are neither all zeros nor have NaN or infinity."""
    dim: int
    """The length of the vectors, D."""
    factory: str
    """The description of the index, in the words of faiss's `index_factory`."""
    seed: int
    """The random seed of the rows that it was trained and measured with."""
    depth: DepthSetting | None
    """The parameter that searches use; None if they always look at all of the index."""
    recall_wanted: float
    """The recall that was asked for."""
    recall: float
    """The share of the 10 nearest rows, or of all if there are fewer, that searches have found."""
    recall_rows: int
    """The number of rows of the store whose neighbours were searched for that."""
    file: str
    """The name of the index's file."""
    bytes: int
    """The size of the index's file."""
    sha256: str
    """The sha256 of the index's file, as hexadecimal digits."""

    def to_json(self) -> dict[str, Any]:
        """Returns the facts as plain JSON values."""
        return {**self._asdict(), "depth": None if self.depth is None else self.depth._asdict()}


class AnnIndex(NamedTuple):
    """An approximate index of a store's rows."""

    folder: StorePath
    """The folder of its files."""
    facts: IndexFacts
    """The index's description, recall and place."""

    @property
    def path(self) -> StorePath:
        """The path of the index's file."""
        return self.folder / self.facts.file

    def to_json(self) -> dict[str, Any]:
        """Returns the facts and the path as plain JSON values."""
        return {**self.facts.to_json(), "path": str(self.path)}


def index_file(store: Store, folder: StorePath, name: str) -> StoreFile:
    """Returns a file of an index; in the folder of a store's own indexes no link is followed, nor is it one itself.

    Args:
        store: The store whose rows the index is of.
        folder: The folder of the index.
        name: The name of the file in that folder.

    Raises:
        StoreError: If the folder is not the store's own, and is none.
    """
    return store.folder / f"{FOLDER}/{name}" if folder == store.path / FOLDER else open_folder(folder) / name


def read_index_facts(store: Store, folder: StorePath, name: str) -> AnnIndex | None:
    """Reads the facts of the index of a tensor; None if there is none.

    Args:
        store: The store whose rows the index should be of.
        folder: The folder of the index.
        name: The name of the tensor.

    Raises:
        StoreError: If they can't be read, are no regular file, or are behind a link in the store.
    """
    path = folder / _facts_name(name)
    try:
        facts: IndexFacts = typed(parse_json(index_file(store, folder, path.name).read()), IndexFacts)
    except NotAStoreError:
        return None
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError) and not isinstance(error, StoreReplacedError):
            return None
        raise
    except ValueError as error:
        raise StoreError(
            f"{path}: no readable facts of an index ({error}); `embedx index --overwrite` writes them anew"
        ) from error
    if facts.format != FORMAT or not _FILE.fullmatch(facts.file):
        raise StoreError(
            f"{path}: the format is {facts.format}, of the file {facts.file!r}; this embedx reads {FORMAT}"
        )
    return AnnIndex(folder, facts)


def open_ann_index(store: Store, name: str, splits: Sequence[str] = (), folder: Path | None = None) -> AnnIndex:
    """Returns the index of a tensor of a store, if it is of the rows that the store has now.

    Args:
        store: The store whose rows the index has to be of.
        name: The name of the tensor: `embeddings`, or an extra layer's.
        splits: The splits that are to be searched; none takes all of the store's.
        folder: The folder of the index; None takes that in the store.

    Raises:
        ConfigError: If there is no such index, or the store has changed since.
        StoreError: If its facts can't be read.
    """
    found = read_index_facts(store, folder or store.path / FOLDER, name)
    command = command_of_index(store, name, splits, folder, None if found is None else found.facts)
    if found is None:
        raise ConfigError(
            f"{folder or store.path} has no index of {name!r}; `{command}` builds one, and without --approximate the "
            "search is exact"
        )
    if found.facts.manifest_sha256 != store.folder.manifest_sha256 or found.facts.name != name:
        raise ConfigError(f"the store has changed since its index was built; run `{command}` again")
    wanted = list(splits) or store.splits
    if set(wanted) != set(found.facts.splits):
        raise ConfigError(
            f"the index has the splits {', '.join(found.facts.splits)}, and the search is in {', '.join(wanted)}; give "
            "the same to both, or leave out --approximate, as the exact search takes any"
        )
    return found


def command_of_index(
    store: Store, name: str, splits: Sequence[str], folder: Path | None, facts: IndexFacts | None
) -> str:
    """Returns the command that builds an index anew, by the settings of the one that is there.

    Args:
        store: The store whose rows are to be indexed.
        name: The name of the tensor.
        splits: The splits to be indexed; none takes all of the store's.
        folder: The folder of the index; None takes that in the store.
        facts: The facts of the index that is there, if there is one.
    """
    options: list[object] = [] if folder is None else ["--out", folder]
    if folder is not None and facts is not None:
        options.append("--overwrite")
    if set(splits) != set(store.splits):
        options += [part for split in splits for part in ("--split", split)]
    if name != EMBEDDINGS:
        options += ["--name", name]
    if facts is not None:
        usual = IndexConfig()
        if facts.factory != default_factory(facts.rows):
            options += ["--factory", facts.factory]
        if facts.recall_wanted != usual.recall:
            options += ["--recall", facts.recall_wanted]
        if facts.seed != usual.seed:
            options += ["--seed", facts.seed]
    return shlex.join(map(str, ["embedx", "index", store.path, *options]))


@contextlib.contextmanager
def temporary_index(folder: Path, name: str) -> Iterator[Path]:
    """Makes the folder of an index, and yields the path at which its file is written before its name is known.

    A file that has got no name is removed, and so are those of processes that were killed.

    Raises:
        OSError: If the folder can't be made.
    """
    make_folder(folder.absolute())
    stem = folder_name(name)
    for path in folder.glob(f".{glob.escape(stem)}.*.part"):
        pid = path.name.removesuffix(".part").rpartition(".")[2]
        if pid.isdecimal() and (int(pid) == os.getpid() or not _lives(int(pid))):
            path.unlink(missing_ok=True)
    temporary = folder / f".{stem}.{os.getpid()}.part"
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
            folder.rmdir()  # if there is no other index


def commit_index(folder: Path, temporary: Path, written: WrittenIndex, facts: IndexFacts) -> AnnIndex:
    """Gives a temporary index its name, then writes its facts, and then removes the index that was there before.

    Raises:
        OSError: If any step fails.
    """
    stem = folder_name(facts.name)
    facts = facts._replace(**written._asdict(), file=f"{stem}-{written.sha256[:_DIGITS]}.faiss")
    os.replace(temporary, folder / facts.file)
    sync_folder(folder)
    write_atomic(folder / _facts_name(facts.name), (json.dumps(facts.to_json(), indent=2) + "\n").encode())
    for path in folder.glob(f"{glob.escape(stem)}-{'[0-9a-f]' * _DIGITS}.faiss"):
        if path.name != facts.file:
            with contextlib.suppress(OSError):
                path.unlink()
    return AnnIndex(folder, facts)


def _lives(pid: int) -> bool:
    """Tells whether there is a process of this number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


def _facts_name(name: str) -> str:
    return f"{folder_name(name)}.json"
