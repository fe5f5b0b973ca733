from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from embedx.errors import StoreError
from embedx.recipe import fingerprint
from embedx.store.format.contents import PlanTerms, SplitTerms, SplitTotals, StoredRecipe, StoredSettings
from embedx.store.format.manifest import Manifest

JSON: dict[str, Any] = {
    "recipe": {"batch_size": 32, "later": [1], "runtime": "eager", "weights": {"sha256": "ab"}},
    "plan": {
        "group_key": None,
        "rows_per_unit": 8,
        "later": {"a": None},
        "classes": ["cat", "dog"],
        "splits": {
            "train": {"inputs": 12, "sizes_and_times_sha256": "cd", "names_sha256": "ef", "later": 1},
            "val": {"inputs": 0},
        },
    },
    "environment": {"python": "3.12", "torch": "2.9", "device": "x86_64", "cores": 2, "threads": 1},
    "settings": {"out": "store", "target_column": None, "working_directory": "/work"},
    "complete": True,
    "totals": {
        "train": {"rows": 11, "inputs": 12, "rejected": 1, "units": 2, "later": 0, "shards": 2, "bytes": 9},
    },
    "index": {"index/train-00000.parquet": "12"},
    "timings": {"seconds": 1.5},
    "updates": [{"new": 1, "base": "34"}],
    "later_environments": [{"torch": "2.10"}],
    "format": 1,
}
"""A manifest's contents, with entries of a later embedx and in another order than this one writes."""


def file_of(contents: dict[str, Any]) -> bytes:
    contents = {**contents, "fingerprint": fingerprint(contents["recipe"])}
    return (json.dumps({**contents, "sha256": fingerprint(contents)}, indent=2) + "\n").encode()


def read(root: Path, contents: dict[str, Any]) -> Manifest:
    (root / "manifest.json").write_bytes(file_of(contents))
    return Manifest.read(root)


def test_what_was_read_is_written_with_the_same_bytes(tmp_path: Path) -> None:
    assert read(tmp_path, JSON).encode() == file_of(JSON)


def test_entries_of_a_later_embedx_outlive_a_change(tmp_path: Path) -> None:
    manifest = read(tmp_path, JSON)
    changed = dataclasses.replace(manifest, plan=dataclasses.replace(manifest.plan, rows_per_unit=16), complete=False)
    assert changed.encode() == file_of({**JSON, "plan": {**JSON["plan"], "rows_per_unit": 16}, "complete": False})
    assert changed.plan != manifest.plan and changed.recipe == manifest.recipe


def test_a_new_manifest_has_the_entries_that_embedx_always_wrote(tmp_path: Path) -> None:
    plan = PlanTerms("class", None)
    contents = json.loads(Manifest(StoredRecipe(), plan).encode())
    assert (contents["plan"], contents["environment"]) == (
        {"group_key": "class", "rows_per_unit": None, "splits": {}}, {},
    )  # fmt: skip
    plan = PlanTerms(None, 8, ("cat",), {"train": SplitTerms(12, "ef", "cd")})
    contents = json.loads(Manifest(StoredRecipe(), plan, settings=StoredSettings.from_json({"out": "a"})).encode())
    assert list(contents["plan"]) == ["group_key", "rows_per_unit", "classes", "splits"]
    assert list(contents["plan"]["splits"]["train"]) == ["inputs", "names_sha256", "sizes_and_times_sha256"]
    assert contents["settings"] == {"out": "a"}
    assert list(contents) == [*JSON, "fingerprint", "sha256"]


def test_entries_have_types(tmp_path: Path) -> None:
    manifest = read(tmp_path, JSON)
    assert (manifest.plan.group_key, manifest.plan.classes, manifest.plan.grouped) == (None, ("cat", "dog"), False)
    assert manifest.plan.splits["train"].names_sha256 == "ef" and manifest.plan.splits["val"].names_sha256 is None
    assert (manifest.totals["train"].rows, manifest.totals["train"].rejected) == (11, 1)
    assert manifest.environment.packages == {"torch": "2.9"}
    assert (manifest.settings.working_directory, manifest.settings.target_column) == ("/work", None)
    recipe = manifest.recipe
    assert (recipe.batch_size, recipe.runtime, recipe.weights_sha256) == (32, "eager", "ab")
    assert (recipe.device, recipe.dtype, recipe.precision, recipe.preprocessing) == (None,) * 4


def test_a_recipe_of_a_writer_s_user_may_say_anything() -> None:
    recipe = StoredRecipe.from_json({"batch_size": "many", "runtime": "mine", "weights": "here", "dtype": []})
    assert (recipe.batch_size, recipe.runtime, recipe.weights_sha256, recipe.dtype) == (None,) * 4
    assert Manifest(recipe, PlanTerms(None, 1)).fingerprint == fingerprint(recipe.to_json())


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("plan", {"group_key": None, "splits": {}}, "rows_per_unit"),
        ("plan", {"group_key": None, "rows_per_unit": 0, "splits": {}}, "its units have 0 rows"),
        ("plan", {"group_key": None, "rows_per_unit": None, "splits": {"a": {"inputs": 1}}}, "its units have None"),
        ("plan", {"group_key": None, "rows_per_unit": 1, "splits": {"a": {"inputs": "1"}}}, "inputs is '1'"),
        ("plan", {"group_key": None, "rows_per_unit": 1, "classes": [1], "splits": {}}, "classes"),
        ("totals", {"train": {"rows": 1}}, "inputs"),
        ("settings", {"working_directory": 1}, "working_directory is 1"),
        ("environment", [], "environment is"),
        ("recipe", None, "recipe is None"),
    ],
)
def test_a_part_that_is_none_is_named(tmp_path: Path, place: str, value: Any, told: str) -> None:
    with pytest.raises(StoreError, match=f"not a readable manifest .*{told}"):
        read(tmp_path, {**JSON, place: value})


def test_a_later_format_is_named_whatever_else_it_holds(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"manifest.json: the format is 2; this embedx reads format 1$"):
        read(tmp_path, {**JSON, "format": 2, "units": [1, 2]})


def test_the_totals_of_no_units_are_zero() -> None:
    assert set(SplitTotals.of(()).to_json().values()) == {0}
