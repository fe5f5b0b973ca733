from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from embedx.data.plan import build_plan
from embedx.distribute.plan_files import map_plan, write_plan
from embedx.distribute.sight import check_inputs, check_store
from embedx.errors import ConfigError
from embedx.store.format.manifest import Manifest
from tests.folders import folder_source, touch
from tests.store.builders import build_store, manifest


def test_the_plan_is_mapped_from_the_store_s_folder(tmp_path: Path) -> None:
    plan = build_plan({"all": folder_source(touch(tmp_path / "images", "a/1.jpg", "b/2.jpg"))}, "class")
    (tmp_path / "store").mkdir()
    sent = write_plan(tmp_path / "store", plan)
    assert len(sent.splits["all"]) == 0
    found = map_plan(tmp_path / "store", sent)
    assert found.splits["all"].table.equals(plan.splits["all"].table)
    assert found.splits["all"].to_json() == plan.splits["all"].to_json()
    assert all(path.name.endswith(".embedx-tmp") for path in (tmp_path / "store").iterdir())


def test_inputs_that_are_not_there_are_told_by_the_machine_that_misses_them(tmp_path: Path) -> None:
    images = touch(tmp_path / "images", "a/1.jpg", "b/2.jpg")
    plan = build_plan({"all": folder_source(images)}, None)
    check_inputs(plan, "node-1")
    (images / "a/1.jpg").unlink()
    check_inputs(plan, "node-1")  # one may have gone since
    images.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"does not see the inputs of split 'all', such as .*1\.jpg, which node-1"):
        check_inputs(plan, "node-1")


def test_a_store_that_is_not_there_or_another_one_is_told(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store")
    check_store(store, Manifest.read(store), "node-1")
    with pytest.raises(ConfigError, match=r"sees another store at .*, and not the one that node-1 writes"):
        check_store(store, dataclasses.replace(manifest({"train": 12}, recipe="other")), "node-1")
    with pytest.raises(ConfigError, match=r"sees no store at"):
        check_store(tmp_path / "nothing", Manifest.read(store), "node-1")
