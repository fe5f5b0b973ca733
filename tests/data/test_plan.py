from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.datasets import ImageFolder

from embedx.data.plan import PLAN_COLUMNS, Plan, SplitPlan, build_plan
from embedx.data.reading.files import FileReader
from embedx.data.sources.base import COMMON_SCHEMA, Source
from embedx.errors import ConfigError
from embedx.names import RESERVED_COLUMNS
from embedx.store.format.index import PLACE_SCHEMA, ROW_SCHEMA
from tests.folders import folder_source

SCHEMA = pa.schema([*COMMON_SCHEMA, ("target", pa.string()), ("class", pa.string())])
texts = st.text(st.characters(codec="utf-8"), max_size=4)
labels = st.lists(st.none() | texts, min_size=1, max_size=30)
quick = settings(max_examples=50, deadline=None)


def folder(root: Path, *names: str) -> Source:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
        os.utime(root / name, (1_700_000_000, 1_700_000_000))
    return folder_source(root)


def table(classes: Sequence[str | None]) -> pa.Table:
    rows = [
        {"key": f"k{i}", "path": b"p%d" % i, "size": i, "mtime_ns": 10 * i, "target": name, "class": name}
        for i, name in enumerate(classes)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def listed(content: pa.Table) -> Source:
    """A source whose samples are already known."""
    return Source(("class",), FileReader(), lambda: content)


def one_split(content: pa.Table, group_key: str | None = None) -> SplitPlan:
    return build_plan({"all": listed(content)}, group_key).splits["all"]


def rows(plan: Plan, split: str, *columns: str) -> list[tuple[Any, ...]]:
    content = plan.splits[split].table
    return list(zip(*(content[name].to_pylist() for name in columns), strict=True))


def test_targets_are_those_of_torchvisions_image_folder(tmp_path: Path) -> None:
    source = folder(tmp_path, "b/1.jpg", "a b/2.jpg", "Z/3.jpg", "b/deep/4.jpg", "é/5.jpg", "10/6.jpg", "9/7.jpg")
    plan = build_plan({"train": source}, None)
    reference = ImageFolder(str(tmp_path))
    assert plan.classes == reference.classes
    assert {os.fsdecode(path): target for path, target in rows(plan, "train", "path", "target")} == dict(
        reference.samples
    )


def test_a_class_has_one_number_in_all_splits(tmp_path: Path) -> None:
    sources = {
        "train": folder(tmp_path / "train", "dog/1.jpg", "cat/2.jpg"),
        "val": folder(tmp_path / "val", "dog/3.jpg", "ant/4.jpg", "loose.jpg"),
    }
    plan = build_plan(sources, None)
    assert plan.classes == ["ant", "cat", "dog"]
    assert rows(plan, "train", "key", "target") == [("cat/2.jpg", 1), ("dog/1.jpg", 2)]
    assert rows(plan, "val", "key", "target") == [("ant/4.jpg", 0), ("dog/3.jpg", 2), ("loose.jpg", None)]


def test_without_classes_there_are_no_targets(tmp_path: Path) -> None:
    plan = build_plan({"all": folder(tmp_path, "1.jpg", "2.jpg")}, None)
    assert plan.classes == []
    assert rows(plan, "all", "target", "group") == [(None, None), (None, None)]


def test_a_plan_has_its_own_columns_first_and_then_the_sources(tmp_path: Path) -> None:
    split = build_plan({"all": folder(tmp_path, "a/1.jpg")}, "parent").splits["all"]
    assert tuple(split.table.column_names) == (*PLAN_COLUMNS, "class", "parent")
    assert split.metadata == ("class", "parent")
    assert len(split) == 1


def test_the_order_is_by_group_and_within_one_that_of_the_source(tmp_path: Path) -> None:
    source = folder(tmp_path, "b/1.jpg", "a/x/2.jpg", "b/3.jpg", "a/y/4.jpg", "c.jpg", "a/5.jpg")
    plan = build_plan({"all": source}, "class")
    assert rows(plan, "all", "group", "key") == [
        ("a", "a/5.jpg"),
        ("a", "a/x/2.jpg"),
        ("a", "a/y/4.jpg"),
        ("b", "b/1.jpg"),
        ("b", "b/3.jpg"),
        (None, "c.jpg"),
    ]
    assert plan.splits["all"].inputs_per_group() == {"a": 3, "b": 2, None: 1}
    assert rows(build_plan({"all": source}, "parent"), "all", "group")[1] == ("a/x",)


def test_targets_that_are_numbers_stay_and_names_beside_them_are_a_fault() -> None:
    named = table(["a", "b"])
    at = named.schema.get_field_index("target")
    numbered = named.set_column(at, "target", pa.array([7, None], pa.int32()))
    plan = build_plan({"all": listed(numbered)}, None)
    assert plan.classes == [] and rows(plan, "all", "target") == [(7,), (None,)]
    without = named.set_column(at, "target", pa.nulls(2))
    assert rows(build_plan({"one": listed(named), "two": listed(without)}, None), "two", "target") == [(None,)] * 2
    with pytest.raises(ConfigError, match="numbers in split 'two', and names such as 'a' in another"):
        build_plan({"one": listed(named), "two": listed(numbered)}, None)


@quick
@given(labels)
def test_sorting_by_group_is_stable_and_keeps_every_row_whole(classes: list[str | None]) -> None:
    content = table(classes)
    plan = build_plan({"all": listed(content)}, "class")
    split = plan.splits["all"]
    expected = sorted(enumerate(classes), key=lambda row: (row[1] is None, row[1] or "", row[0]))
    assert split.table["size"].to_pylist() == [i for i, _ in expected]
    assert split.table["group"].to_pylist() == [name for _, name in expected]
    kept = [name for name in SCHEMA.names if name != "target"]
    ordered = sorted(split.table.select(kept).to_pylist(), key=lambda row: row["size"])
    assert ordered == content.select(kept).to_pylist()
    assert plan.classes == sorted({name for name in classes if name is not None})
    assert split.table["target"].to_pylist() == [
        None if name is None else plan.classes.index(name) for _, name in expected
    ]
    assert sum(split.inputs_per_group().values()) == len(classes)


@quick
@given(st.integers(1, 200), st.integers(1, 50))
def test_units_hold_every_row_once_and_in_order(inputs: int, per_unit: int) -> None:
    units = one_split(table([None] * inputs)).unit_rows(per_unit)
    assert [row for unit in units for row in unit] == list(range(inputs))
    assert all(len(unit) == per_unit for unit in units[:-1])
    assert 0 < len(units[-1]) <= per_unit


def test_an_unknown_group_key_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown --group-key 'clas'; did you mean class\?"):
        build_plan({"all": folder(tmp_path, "a/1.jpg")}, "clas")
    with pytest.raises(ConfigError, match=r"unknown --group-key 'slide'; valid: class, parent"):
        build_plan({"all": folder(tmp_path, "a/1.jpg")}, "slide")


def with_metadata(**columns: pa.Array) -> Source:
    content = table(["a"])
    for name, values in columns.items():
        content = content.append_column(name, values)
    return Source(("class", *columns), FileReader(), lambda: content)


def test_metadata_that_could_not_be_stored_is_found_before_the_run() -> None:
    assert {*ROW_SCHEMA.names, *PLACE_SCHEMA.names} == RESERVED_COLUMNS
    for name in ("shard", "sha256", "size"):
        with pytest.raises(ConfigError, match=f"columns can't be named {name}, .*rename them"):
            build_plan({"all": with_metadata(**{name: pa.array(["x"])})}, None)
    nested = with_metadata(box=pa.array([[1, 2]]), nothing=pa.array([{}], pa.struct([])), number=pa.array([1.5]))
    with pytest.raises(
        ConfigError, match="the column 'nothing' is struct<>, which an index table can't hold; make it text"
    ) as caught:
        build_plan({"all": nested}, "box")
    assert "--group-key box: split 'all' has values of type list<item: int64>" in str(caught.value)
    plain = with_metadata(number=pa.array([1.5]))
    assert build_plan({"all": plain}, "number").splits["all"].inputs_per_group() == {"1.5": 1}


def test_every_fault_of_every_split_is_reported_at_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    twice = pa.concat_tables([table(["a"]), table(["b"])])
    sources = {"one": folder_source(tmp_path / "one"), "two": folder_source(tmp_path / "two"), "three": listed(twice)}
    with pytest.raises(ConfigError) as caught:
        build_plan(sources, "parent")
    assert len(caught.value.faults) == 4
    assert [str(tmp_path / name) in str(caught.value) for name in ("one", "two")] == [True, True]
    assert "split 'three': 1 keys occur more than once" in str(caught.value)
    assert "unknown --group-key 'parent'" in str(caught.value)


def test_the_manifests_entry_tells_splits_classes_and_units_apart(tmp_path: Path) -> None:
    plan = build_plan({"all": folder(tmp_path, "a/1.jpg", "b/2.jpg")}, "class")
    entry = plan.to_json(64)
    assert entry["group_key"] == "class"
    assert entry["rows_per_unit"] == 64
    assert entry["classes"] == ["a", "b"]
    assert entry["splits"]["all"] == plan.splits["all"].to_json()
    assert entry["splits"]["all"]["inputs"] == 2


def test_another_name_size_or_time_gives_another_digest_and_nothing_else_does(tmp_path: Path) -> None:
    names = ("a/1.jpg", "a/2.jpg", "b/3.jpg")

    def digests() -> tuple[str, str]:
        entry = build_plan({"all": folder_source(tmp_path)}, "class").splits["all"].to_json()
        return entry["names_sha256"], entry["sizes_and_times_sha256"]

    folder(tmp_path, *names)
    first = digests()
    (tmp_path / "notes.txt").write_text("not an image")
    os.chmod(tmp_path / names[0], 0o600)
    assert digests() == first
    os.utime(tmp_path / names[1], ns=(0, 1_700_000_000_000_000_001))
    later = digests()
    assert later[0] == first[0] and later[1] != first[1]
    os.utime(tmp_path / names[1], (1_700_000_000, 1_700_000_000))
    assert digests() == first
    (tmp_path / names[1]).write_bytes(b"longer than before")
    os.utime(tmp_path / names[1], (1_700_000_000, 1_700_000_000))
    longer = digests()
    assert longer[0] == first[0] and longer[1] != first[1]
    folder(tmp_path, *names)
    assert digests() == first
    (tmp_path / names[1]).rename(tmp_path / "a/9.jpg")
    renamed = digests()
    assert renamed[0] != first[0] and renamed[1] == first[1]


def test_the_digest_depends_on_groups_and_targets() -> None:
    names = {
        one_split(table(classes), key).to_json()["names_sha256"]
        for classes in (["a", "b"], ["a", "a"], ["a", None])
        for key in ("class", None)
    }
    assert len(names) == 6


@quick
@given(labels, st.data())
def test_the_digest_does_not_depend_on_how_the_table_is_chunked(classes: list[str | None], data: st.DataObject) -> None:
    content = table(classes)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(classes)), max_size=4)))
    pieces = [content.slice(i, j - i) for i, j in zip([0, *cuts], [*cuts, len(classes)], strict=True)]
    longer = pa.concat_tables([table(["before"]), content, table(["after"])]).combine_chunks()
    split = one_split(content)
    chunked = one_split(pa.concat_tables(pieces))
    # Slices of a longer array: what lies before and behind them in memory is not theirs.
    sliced = SplitPlan("all", split.table.slice(0))
    assert split.to_json() == chunked.to_json() == sliced.to_json()
    assert one_split(longer.slice(1, len(classes))).to_json() == split.to_json()
    unmerged = pa.concat_tables([split.table.slice(i, 1) for i in range(len(split))])
    assert SplitPlan("all", unmerged).to_json() == split.to_json()


@quick
@given(st.lists(texts, min_size=1, max_size=6, unique=True), st.lists(texts, min_size=1, max_size=6, unique=True))
def test_other_keys_give_another_digest(keys: list[str], others: list[str]) -> None:
    def digest(names: list[str]) -> str:
        content = table([None] * len(names)).set_column(0, "key", pa.array(names, pa.string()))
        digest: str = one_split(content).to_json()["names_sha256"]
        return digest

    assert (digest(keys) == digest(others)) == (keys == others)
