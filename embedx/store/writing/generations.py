"""Puts a new store in the place of an old one in a bucket, where no folders can be exchanged.

The new store is written to a folder of its own beside the files of the old one, a generation. Once it is complete, the
manifest at the store's place, exchanged on the condition that it is still the one that this run has read, says that
this is the store now. Then the old one's files are removed. A generation with a manifest in it is work that has not
been finished; one without is what is left of an old one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from embedx.errors import StoreError, StoreMismatchError
from embedx.names import CHECK_TIMES, GENERATION, INDEX, MANIFEST
from embedx.store.format import layout
from embedx.store.format.creation import new_token
from embedx.store.format.generation import is_generation
from embedx.store.format.manifest import Manifest
from embedx.store.format.object_folder import ObjectFolder
from embedx.store.writing.replacement import named_shards, our_shards, remove_files
from embedx.store.writing.session_choice import can_continue
from embedx.system import objects


def leftovers(out: ObjectFolder) -> list[ObjectFolder]:
    """Returns the stores that interrupted runs have begun, in order."""
    return [folder for folder in _generations(out) if folder.has(MANIFEST)]


def stage(out: ObjectFolder, now: Manifest, recipe: str | None) -> tuple[ObjectFolder, Manifest | None]:
    """Returns the folder of the store that will take the place of one, and the manifest that is there already.

    Args:
        out: The store that is to be replaced.
        now: The manifest of the run.
        recipe: The fingerprint of an update; None if all is begun anew, and what is of other terms is removed.

    Raises:
        StoreMismatchError: If there are units of another recipe, which the update can't use.
    """
    for folder in reversed(leftovers(out)):
        before = Manifest.read(folder)
        if can_continue(before, now):
            return folder, before
        if recipe is None or not layout.has_rows(folder):
            remove_generation(folder)
        elif before.fingerprint != recipe:
            raise StoreMismatchError(
                f"an interrupted --overwrite has left units of another recipe in {folder}; run that command again to "
                "finish it, or delete what is there"
            )
    names = [out.generation, *(folder.path.name for folder in _generations(out))]
    numbers = [int(name.removeprefix(GENERATION).partition("-")[0] or 0) for name in names]
    name = f"{GENERATION}{max(numbers) + 1:06d}-{new_token()}"
    return ObjectFolder(out.path / name, generation=""), None


def take_place(
    new: ObjectFolder, out: ObjectFolder, manifest: Manifest, stays: Callable[[ObjectFolder], bool]
) -> Manifest:
    """Has the manifest at the store's place name a complete new store, and removes the old one's files.

    Args:
        new: The new store.
        out: The store that is replaced.
        manifest: The manifest of the new store.
        stays: The function that tells whether a store that an interrupted run has left is still of use.

    Raises:
        StoreError: If another run has changed the store's manifest meanwhile.
    """
    manifest = dataclasses.replace(manifest, generation=new.path.name)
    manifest.write(out)
    new.remove(MANIFEST)
    for folder in leftovers(out):
        if not stays(folder):
            remove_generation(folder)
    finish_removal(out)
    return manifest


def finish_removal(out: ObjectFolder) -> None:
    """Removes what is left of the stores that one has replaced; the store must be held."""
    for folder in _generations(out):
        if not folder.has(MANIFEST) and not _is_the_store(out, folder):
            remove_generation(folder)
    if out.generation:
        objects.remove(f"{out.path}/{out.generation}/{MANIFEST}")
        first = ObjectFolder(out.path, generation="")
        if {INDEX, CHECK_TIMES} & set(first.names()):
            shards = [*our_shards(first, named_shards(first))]
            tables = [f"{INDEX}/{table.name}" for table in layout.index_files(first).values()]
            remove_files(first, [*shards, *layout.temporary_files(first)])
            remove_files(first, tables)  # last, as shards that are left behind are looked for where there are some
            remove_files(first, [CHECK_TIMES])


def remove_generation(folder: ObjectFolder) -> None:
    """Removes a store that an interrupted run has begun; its manifest goes first, so that the rest is of no use."""
    folder.remove(MANIFEST)
    remove_files(folder, [*folder.list()])


def _generations(out: ObjectFolder) -> list[ObjectFolder]:
    """Returns the folders of generations, but for the one that is the store, in order."""
    names = sorted(filter(is_generation, ObjectFolder(out.path, generation="").names()))
    return [ObjectFolder(out.path / name, generation="") for name in names if name != out.generation]


def _is_the_store(out: ObjectFolder, folder: ObjectFolder) -> bool:
    """Tells whether the manifest names a generation now, as another run may have exchanged it since it was read.

    It is asked after the generation was found to have no manifest of its own: none that is without is named later.
    """
    return ObjectFolder(out.path).generation == folder.path.name


def further_splits(folder: ObjectFolder, new: Manifest, out: Manifest | None) -> bool:
    """Tells whether a store that was left has rows of the new one's recipe, in a split of neither other store."""
    try:
        aside = Manifest.read(folder)
    except StoreError:
        return False
    known = {layout.folder_name(split) for store in (new, out) if store is not None for split in store.plan.splits}
    splits = {split for files in (layout.index_files, layout.journal_files) for split, _ in files(folder)}
    return aside.fingerprint == new.fingerprint and not splits <= known
