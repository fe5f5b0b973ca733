"""The manifest: the description of a store, which says, once `complete`, that the store is whole."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any, get_type_hints

from embedx.errors import NotAStoreError, StoreError, StoreMismatchError, is_refusal, output_error
from embedx.paths import StorePath
from embedx.recipe import canonical_json, fingerprint
from embedx.store.format.atomic import write_atomic
from embedx.store.format.contents import Environment, PlanTerms, SplitTotals, StoredRecipe, StoredSettings, to_json
from embedx.store.format.layout import (
    MANIFEST,
    StoreRoot,
    index_files,
    index_tables,
    is_index_path,
    is_temporary,
    is_there,
    store_root,
)
from embedx.store.format.object_folder import ObjectFolder
from embedx.store.format.open_folder import open_folder
from embedx.store.format.shards import FORMAT
from embedx.store.format.store_folder import StoreFolder
from embedx.store.format.typed_json import fields, parse_json

_CHECKSUM = "sha256"
_GENERATION = "generation"
_ELSEWHERE = "choose another one (embedx writes into no other folder)"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`."""

    recipe: StoredRecipe
    """All that determines an embedding's value."""
    plan: PlanTerms
    """The terms by which the inputs are cut into units."""
    environment: Environment = dataclasses.field(default_factory=Environment)
    """The versions and hardware of the run that began the store; a change here is a notice, not a refusal."""
    settings: StoredSettings = dataclasses.field(default_factory=StoredSettings)
    """The settings of the run that began the store; they serve to find the inputs again."""
    complete: bool = False
    """True once the store is whole, which is written last of all."""
    totals: dict[str, SplitTotals] = dataclasses.field(default_factory=dict)
    """The sums over each split, by the split's name."""
    index: dict[str, str] = dataclasses.field(default_factory=dict)
    """The sha256 of every index table, by its path in the store."""
    timings: dict[str, float] = dataclasses.field(default_factory=dict)
    """The seconds and rates of the run that completed the store."""
    updates: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """The changes by later runs, as counts of inputs; after one, the plan no longer tells an input's unit."""
    later_environments: list[Environment] = dataclasses.field(default_factory=list)
    """The other environments in which later runs went on."""
    generation: str = ""
    """The folder below the manifest with all other files of a store in a bucket; empty if they are beside it."""
    format: int = FORMAT

    @property
    def fingerprint(self) -> str:
        """The recipe's fingerprint."""
        return fingerprint(self.recipe.to_json())

    @property
    def about(self) -> str:
        """The terms of the store that no index table's rows tell, as JSON; each index table has them too."""
        plan = {"group_key": self.plan.group_key, "rows_per_unit": self.plan.rows_per_unit}
        return canonical_json({"recipe": self.recipe.to_json(), **plan})

    def encode(self) -> bytes:
        """Returns the file's bytes, in which a checksum covers all the rest."""
        contents = {**to_json(vars(self)), "fingerprint": self.fingerprint}
        if not self.generation:
            del contents[_GENERATION]
        return (json.dumps(contents | {_CHECKSUM: fingerprint(contents)}, indent=2, allow_nan=False) + "\n").encode()

    def write(self, root: StoreRoot) -> None:
        """Writes the manifest, whole or not at all."""
        if isinstance(root, ObjectFolder):
            root.put_manifest(self.encode(), self.generation)
        else:
            write_atomic(root / MANIFEST, self.encode())

    @classmethod
    def read(cls, root: StorePath | StoreFolder) -> Manifest:
        """Reads the manifest of the store at `root`; a store that is held open keeps its sha256.

        Raises:
            NotAStoreError: If there is no manifest.
            StoreReplacedError: If it is gone, as the store was replaced.
            StoreError: If it is not embedx's, has another format, or was changed.
        """
        folder = open_folder(root)
        path = folder.path / MANIFEST
        data = _data_of(folder)
        folder.manifest_sha256 = hashlib.sha256(data).hexdigest()
        if isinstance(folder, ObjectFolder):
            folder.take_generation(data)
        try:
            contents = parse_json(data)
            if isinstance(contents, dict) and type(other := contents.get("format")) is int and other != FORMAT:
                raise StoreError(f"{path}: the format is {other}; this embedx reads format {FORMAT}")
            kinds = {**get_type_hints(cls), "fingerprint": str, _CHECKSUM: str}
            stated = fields(contents, kinds, optional={_GENERATION})
            checksum, recipe_checksum = stated.pop(_CHECKSUM), stated.pop("fingerprint")
            manifest = cls(**stated)
            if stray := [name for name in manifest.index if not is_index_path(name)]:
                raise ValueError(f"{stray[0]!r:.300} can't be an index table's place")
        except ValueError as error:
            raise StoreError(f"{path}: not a readable manifest ({error}); {_mending(folder.path)}") from error
        if manifest.fingerprint != recipe_checksum:
            raise StoreError(f"{path}: the recipe does not match its fingerprint; the file was changed")
        del contents[_CHECKSUM]
        if fingerprint(contents) != checksum:
            raise StoreError(
                f"{path}: the contents do not match their sha256; the file was changed; put back a copy, or "
                f"{_mending(folder.path)}"
            )
        return manifest


def _data_of(folder: StoreFolder) -> bytes:
    """Reads the file; of a bucket its version too, and first, so that it is no later one."""
    try:
        if isinstance(folder, ObjectFolder):
            folder.manifest_version = folder.version_of(MANIFEST)
        return folder.read(MANIFEST)
    except StoreError as error:
        if not (isinstance(error.__cause__, FileNotFoundError) and folder.is_current()):
            raise
        raise NotAStoreError(f"{folder.path} is not a store: {_absence(folder)}") from error


def _absence(folder: StoreFolder) -> str:
    """Words what a place without a manifest lacks, and the next step."""
    try:
        tables = index_tables(folder)
    except StoreError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        return "there is no such bucket; check its name, and that the environment leads to its server"
    if tables:
        return f"it has no {MANIFEST}; where it was one, {_mending(folder.path)}"
    return f"it has no {MANIFEST}; give the folder that `embedx extract` wrote"


def existing_store(place: StorePath | ObjectFolder) -> Manifest | None:
    """Reads the manifest of the store at a place; returns None where there is no folder, or an empty one.

    Files that an interrupted run of embedx left before it wrote a manifest don't count.

    Raises:
        StoreMismatchError: If something else is there.
        StoreError: If the machine refuses to read it.
    """
    if isinstance(place, Path) and not _is_folder(place):
        return None
    root = store_root(place)
    if is_there(root, MANIFEST):
        try:
            return Manifest.read(root)
        except StoreError as error:
            if is_refusal(error.__cause__):
                raise
            raise StoreMismatchError(f"--out {root} is not a store of embedx's ({error}); {_ELSEWHERE}") from error
    names = (path.name for path in root.iterdir()) if isinstance(root, Path) else root.names()
    if any(not is_temporary(os.path.basename(name)) for name in names):
        lost = f"; where it was one, {_mending(open_folder(root).path)}" if index_files(root) else ""
        raise StoreMismatchError(f"--out {root}: the folder is not empty and not a store; {_ELSEWHERE}{lost}")
    return None


def _mending(place: StorePath) -> str:
    """Words how a manifest is made again."""
    if isinstance(place, Path):
        return f"`embedx repair {place}` writes it anew"
    return f"copy {place} to this machine, where `embedx repair` writes it anew"


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:
        raise output_error(path, "can't be looked at", error, is_store=False) from error
