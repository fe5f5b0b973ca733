"""The choice of what a run does at an output folder: a pure function of two manifests."""

from __future__ import annotations

import dataclasses
import enum
from typing import Literal, NamedTuple

from embedx.errors import StoreMismatchError
from embedx.store.format.contents import PlanTerms
from embedx.store.format.differences import differences_of
from embedx.store.format.manifest import Manifest

Mode = Literal["create", "resume", "overwrite"]


class Choice(enum.Enum):
    """The thing that a run does at the output folder."""

    CREATE = "create"
    """Begins a store: nothing is there that has to be kept."""
    RESUME = "resume"
    """Goes on with the store that is there; its plan tells which units are missing."""
    RENEW = "renew"
    """Begins the store anew in its place, as no unit is committed; the rows of its journals are compared one by one."""
    REPLACE = "replace"
    """Writes another store beside the one that is there, which takes its place once complete."""
    COMPARE = "compare"
    """Compares the inputs with those in the store, as the plan does not tell which of them are missing."""


class Holding(NamedTuple):
    """The rows that the store at the output folder has on disk."""

    units: bool = False
    """True if it has an index table."""
    journals: bool = False
    """True if it has the journal of a unit."""
    is_whole: bool = False
    """True if it is complete and has all units that its manifest names."""


def choose(out: object, mode: Mode, before: Manifest | None, now: Manifest, holding: Holding) -> Choice:
    """Chooses what a run does at the output folder.

    Args:
        out: The output folder, for messages.
        mode: The wish of the caller.
        before: The manifest of the store that is there; None if there is none.
        now: The manifest of the run.
        holding: The rows that the store that is there has on disk.

    Raises:
        StoreMismatchError: If the store that is there must be kept, and does not go with the mode or the manifest.
    """
    if before is None:
        return Choice.CREATE
    if mode == "overwrite":
        return Choice.REPLACE
    has_units = before.complete or holding.units
    if not (has_units or holding.journals):
        return Choice.CREATE
    if mode == "create":
        raise StoreMismatchError(f"{out} is a store already; choose another folder, or overwrite it")
    if differing := differences_of(before, now):
        raise StoreMismatchError(
            [
                f"{out} holds a store of another recipe or plan (then → now):",
                *(f"  {difference}" for difference in differing),
                "choose another folder, give the settings with which it was begun, or replace the store with "
                "--overwrite",
            ]
        )
    if not has_units:
        return Choice.RENEW
    same_inputs = (before.plan.splits, before.plan.classes) == (now.plan.splits, now.plan.classes)
    return Choice.RESUME if same_inputs and (holding.is_whole or not before.updates) else Choice.COMPARE


def can_continue(before: Manifest, now: Manifest) -> bool:
    """Tells whether what an earlier run has left beside the store belongs to the store that this run writes.

    A plan without splits does not identify its inputs, so nothing that is left can be trusted to be of them.
    """
    return bool(now.plan.splits) and all(
        getattr(before, part) == getattr(now, part) for part in ("recipe", "plan", "updates")
    )


def going_on(before: Manifest, now: Manifest) -> Manifest:
    """Returns the manifest with which a run goes on: the store's, with the run's environment and the rows it allows.

    One that was written anew does not say how it was made, and takes environment and settings from the run.
    """
    if not before.environment.to_json():
        before = dataclasses.replace(before, environment=now.environment, settings=now.settings)
    later = before.later_environments
    if now.environment not in (before.environment, *later):
        later = [*later, now.environment]
    settings = before.settings
    if now.settings.allow_nonfinite and not settings.allow_nonfinite:
        settings = settings.replacing(allow_nonfinite=True)
    return dataclasses.replace(before, later_environments=later, settings=settings)


def same_names(before: PlanTerms, now: PlanTerms) -> bool | None:
    """Tells whether the inputs of two plans have the same keys, groups and targets; None if one does not say."""
    pairs = [(terms, now.splits[split]) for split, terms in before.splits.items() if split in now.splits]
    if any(then.names_sha256 is None and here.names_sha256 is not None for then, here in pairs):
        return None
    then, here = (
        {split: (one.inputs, one.names_sha256) for split, one in plan.splits.items()} for plan in (before, now)
    )
    return then == here and before.classes == now.classes
