from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from embedx.errors import StoreMismatchError
from embedx.store.format.contents import SplitTerms
from embedx.store.format.manifest import Manifest
from embedx.store.writing.session_choice import Choice, Holding, Mode, can_continue, choose, same_names
from tests.store.builders import manifest

OUT = Path("store")
NOW = manifest({"train": 12})
BEGUN = NOW
COMPLETE = dataclasses.replace(NOW, complete=True)
UPDATED = dataclasses.replace(COMPLETE, updates=[{"new": 1}])


def with_inputs(before: Manifest, inputs: int, *, classes: tuple[str, ...] | None = None) -> Manifest:
    plan = dataclasses.replace(before.plan, splits={"train": SplitTerms(inputs)}, classes=classes)
    return dataclasses.replace(before, plan=plan)


@pytest.mark.parametrize(
    ("before", "mode", "has_units", "is_whole", "expected"),
    [
        (None, "create", False, False, Choice.CREATE),
        (None, "resume", False, False, Choice.CREATE),
        (None, "overwrite", False, False, Choice.CREATE),
        (BEGUN, "create", False, False, Choice.CREATE),
        (BEGUN, "resume", False, False, Choice.CREATE),
        (BEGUN, "resume", True, False, Choice.RESUME),
        (BEGUN, "overwrite", False, False, Choice.REPLACE),
        (BEGUN, "overwrite", True, False, Choice.REPLACE),
        (COMPLETE, "overwrite", True, True, Choice.REPLACE),
        (COMPLETE, "resume", True, True, Choice.RESUME),
        (COMPLETE, "resume", True, False, Choice.RESUME),
        (COMPLETE, "resume", False, False, Choice.RESUME),
        (UPDATED, "resume", True, True, Choice.RESUME),
        (UPDATED, "resume", True, False, Choice.COMPARE),
        (with_inputs(COMPLETE, 13), "resume", True, True, Choice.COMPARE),
        (with_inputs(BEGUN, 13), "resume", True, False, Choice.COMPARE),
        (with_inputs(COMPLETE, 12, classes=("cat",)), "resume", True, True, Choice.COMPARE),
        (with_inputs(BEGUN, 13), "resume", False, False, Choice.CREATE),
        (manifest({"train": 12}, recipe="other"), "resume", False, False, Choice.CREATE),
        (manifest({"train": 12}, recipe="other"), "overwrite", True, False, Choice.REPLACE),
    ],
)
def test_the_manifests_and_the_mode_tell_what_is_done(
    before: Manifest | None, mode: Mode, has_units: bool, is_whole: bool, expected: Choice
) -> None:
    assert choose(OUT, mode, before, NOW, Holding(has_units, is_whole=is_whole)) is expected


@pytest.mark.parametrize(
    ("before", "mode", "told"),
    [
        (COMPLETE, "create", "store is a store already"),
        (with_inputs(COMPLETE, 13), "create", "store is a store already"),
        (manifest({"train": 12}, recipe="other"), "resume", r"recipe\.name: other → r"),
        (manifest({"train": 12}, group_key=None), "resume", r"plan\.group_key: None → class"),
    ],
)
def test_a_store_that_must_be_kept_is_refused(before: Manifest, mode: Mode, told: str) -> None:
    with pytest.raises(StoreMismatchError, match=told):
        choose(OUT, mode, before, NOW, Holding(True, is_whole=True))


def test_what_lies_beside_the_store_is_continued_if_all_of_it_is_the_same() -> None:
    assert can_continue(BEGUN, NOW) and can_continue(COMPLETE, NOW)
    for other in (manifest({"train": 12}, recipe="other"), with_inputs(NOW, 13), UPDATED):
        assert not can_continue(other, NOW)
    unknown = dataclasses.replace(NOW, plan=dataclasses.replace(NOW.plan, splits={}))
    assert not can_continue(unknown, unknown)


def test_names_are_told_apart_from_sizes_and_times() -> None:
    plans = [dataclasses.replace(NOW.plan, splits={"a": SplitTerms(1, *sha256)}) for sha256 in ("xy", "xz", "zy")]
    assert same_names(plans[0], plans[1]) and not same_names(plans[0], plans[2])
