"""Stores whose inputs get other metadata, classes or places: what is told, computed, and in the index then."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import tarfile
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from embedx import ExtractConfig, sample
from embedx.errors import StoreMismatchError
from embedx.heartbeat import Heartbeat
from embedx.run.extract import extract
from embedx.run.metadata import differ
from embedx.run.summary import Summary
from embedx.run.up_to_date import look_for_work
from embedx.store.format.manifest import Manifest
from embedx.store.reading.verify import verify
from tests.run.test_update import changes, config, draw
from tests.runs import written

NAN = float("nan")
COUNT = 20
"""Inputs of a table: a unit of 16, and one of 4."""
HARD = pa.table(
    {
        "second": pa.array(range(COUNT), pa.timestamp("s")),
        "daytime": pa.array([time(1, 2, 3)] * COUNT, pa.time32("s")),
        "number": [NAN, -0.0, None, 1.5] * 5,
        "numbers": pa.array([[NAN, None], [], None, [-0.0]] * 5, pa.list_(pa.float32())),
        "kind": pa.array(["a", None, "b", "a"] * 5).dictionary_encode(),
        "both": pa.array([{"x": NAN, "y": None}, None] * 10, pa.struct({"x": pa.float64(), "y": pa.int64()})),
        "by_name": pa.array([[("k", 1)], [], None, [("k", None)]] * 5, pa.map_(pa.string(), pa.int64())),
        "zoned": pa.array([datetime(2026, 1, 1, tzinfo=UTC)] * COUNT, pa.timestamp("ns", "Europe/Berlin")),
        "nothing": pa.nulls(COUNT),
        "note": [f"note {number}" for number in range(COUNT)],
        "plate": list(range(COUNT)),
    }
)
"""Columns of which a store reads back some in other types, and with values that are not equal to themselves."""


def write_table(path: Path, metadata: pa.Table) -> Path:
    for number in range(COUNT):
        if not (path.parent / f"{number:02}.ppm").exists():
            draw(path.parent / f"{number:02}.ppm", number)
    names = pa.array([f"{number:02}.ppm" for number in range(COUNT)])
    pq.write_table(metadata.add_column(0, "path", names), path)
    return path


def replaced(*places: tuple[str, int, Any]) -> pa.Table:
    """The table with another value in each of these columns and rows."""
    table = HARD
    for name, row, value in places:
        values = table[name].to_pylist()
        values[row] = value
        table = table.set_column(HARD.column_names.index(name), name, pa.array(values, HARD[name].type))
    return table


def inodes(out: Path) -> dict[str, int]:
    return {str(path.relative_to(out)): path.stat().st_ino for path in out.rglob("*.[ps]a*") if path.is_file()}


def index(out: Path) -> pa.Table:
    """What pyarrow itself reads of the index tables."""
    return pa.concat_tables(pq.read_table(path) for path in sorted((out / "index").iterdir()))


def assert_brought_in(settings: ExtractConfig, told: str, counted: dict[str, int]) -> Summary:
    """A plain run tells the change and refuses; an update brings it in, computes nothing, and all is well then."""
    before = inodes(settings.out)
    with pytest.raises(StoreMismatchError, match=told):
        extract(settings)
    assert inodes(settings.out) == before
    summary = extract(dataclasses.replace(settings, update=True))
    assert changes(summary) == counted and summary.timings["inputs"] == 0
    assert list(verify(settings.out)) == []
    assert extract(settings).up_to_date
    return summary


@pytest.mark.parametrize(
    ("after", "told", "differing"),
    [
        (
            replaced(("note", 18, "x")),
            r"1 with other metadata \(such as '18.ppm': note: note 18 → x\), 19 un",
            1,
        ),
        (
            replaced(("number", 16, 0.5), ("number", 17, 0.0), ("both", 18, {"x": NAN, "y": 1}), ("note", 19, "b")),
            r"4 with other metadata \(such as '16.ppm': number: nan → 0.5\), 16 unchanged",
            4,
        ),
        (HARD.append_column("extra", HARD["plate"]), r"20 with other metadata \(.*: the column extra is new\)", COUNT),
        (
            HARD.drop_columns("both").set_column(9, "plate", HARD["plate"].cast(pa.string())),
            r"20 with other metadata \(such as '00.ppm': the column plate is string now, and was int64\)",
            COUNT,
        ),
    ],
)
def test_metadata_that_are_others_are_told_and_brought_in(
    tmp_path: Path, after: pa.Table, told: str, differing: int
) -> None:
    table = write_table(tmp_path / "images/t.parquet", HARD)
    settings = config(table, tmp_path / "store", group_key=None)
    extract(settings)
    before = inodes(settings.out)
    write_table(table, after)
    counted = {"with_other_metadata": differing, "unchanged": COUNT - differing}
    assert_brought_in(settings, told, {name: count for name, count in counted.items() if count})
    now = inodes(settings.out)
    same = {name for name in before if before[name] == now[name]}
    shards = {name for name in before if name.endswith(".safetensors")}
    assert same == shards | ({"index/all-00000.parquet"} if differing < COUNT else set())
    stored, expected = index(settings.out), pq.read_table(table).drop_columns("path")
    assert stored.column_names[14:] == expected.column_names
    for name in expected.column_names:
        assert str(stored[name].to_pylist()) == str(expected[name].to_pylist()), name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1.0, NAN, 0.0, NAN], [1.0, NAN, -0.0, None]),
        (pa.array(np.array([1, NAN, 2, NAN], np.float16)), pa.array(np.array([1, NAN, 3, 4], np.float16))),
        ([[1.0, NAN], [], [1], [2.0, None]], [[1.0, NAN], [], None, [2.0, 3.0]]),
        ([{"a": NAN}, None, {"a": 1.0}, {"a": None}], [{"a": NAN}, None, {"a": 2.0}, {"a": 0.0}]),
        ([[{"a": [NAN]}], [], [{"a": []}], [None]], [[{"a": [NAN]}], [], [{"a": [1.0]}], []]),
        (pa.array([[("k", 1)], [], [("k", 1)], None], pa.map_(pa.string(), pa.int64())), None),
        (pa.array([[1, 2], None, [3, 4], [5, 6]], pa.list_(pa.int64(), 2)), None),
        (pa.array(["a", None, "b", "c"]).dictionary_encode(), pa.array(["a", None, "c", "b"]).dictionary_encode()),
        (pa.array(["a", None, "b", "c"], pa.string_view()), pa.array(["a", None, "c", "b"], pa.string_view())),
        (pa.array([1, None, 2, 3], pa.duration("ns")), pa.array([1, None, 3, 4], pa.duration("ns"))),
        (pa.array([1, None, 2, 3], pa.decimal128(5, 2)), pa.array([1, None, 3, 4], pa.decimal128(5, 2))),
        (pa.array([1, None, 2, 3], pa.time32("s")), pa.array([1, None, 3, 4], pa.time32("s"))),
        ([b"a", None, b"b", b""], [b"a", None, b"c", None]),
        ([True, None, True, False], [True, None, False, True]),
    ],
)
def test_values_are_compared_to_the_bit(one: Any, other: Any) -> None:
    """The last two of four rows differ; without `other` they are exchanged."""
    one = pa.array(one)
    other = one.take([0, 1, 3, 2]) if other is None else pa.array(other)
    assert differ(one, other).tolist() == [False, False, True, True]
    assert not differ(one, one.slice(0)).any()
    assert differ(one.slice(2), other.slice(2)).all()


def test_a_class_renamed_in_the_same_order_is_told_and_brought_in(tmp_path: Path) -> None:
    """Its number, and so every target, stays."""
    for number in range(2):
        draw(tmp_path / f"{number}.ppm", number)
    (tmp_path / "t.csv").write_text("path,label\n0.ppm,cat\n1.ppm,dog\n")
    settings = config(tmp_path / "t.csv", tmp_path / "store", group_key=None)
    extract(settings)
    (tmp_path / "t.csv").write_text("path,label\n0.ppm,bat\n1.ppm,dog\n")
    told = r"1 relabelled \(such as '0.ppm': label: cat → bat\), 1 unchanged"
    assert_brought_in(settings, told, {"relabelled": 1, "unchanged": 1})
    assert Manifest.read(settings.out).plan.classes == ("bat", "dog")
    assert index(settings.out).select(["label", "target"]).to_pylist() == [
        {"label": "bat", "target": 0},
        {"label": "dog", "target": 1},
    ]


def write_tar(path: Path, notes: list[str], before: str = "") -> Path:
    """Samples with an image and a note in their `.json`; the member in `before` moves them."""
    with tarfile.open(path, "w") as tar:
        members = [("about.md", before.encode())] if before else []
        for number, note in enumerate(notes):
            draw(path.parent / "one.ppm", number)
            members.append((f"{number}.ppm", (path.parent / "one.ppm").read_bytes()))
            members.append((f"{number}.json", json.dumps({"note": note}).encode()))
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_a_tars_json_and_offsets_are_brought_in(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "t.tar", ["a", "b", "c"])
    settings = config(tar, tmp_path / "store", group_key=None)
    extract(settings)
    write_tar(tar, ["a", "b", "d"])
    told = r"1 with other metadata \(such as 't.tar/2': note: c → d\), 2 unchanged"
    assert_brought_in(settings, told, {"with_other_metadata": 1, "unchanged": 2})
    assert index(settings.out)["note"].to_pylist() == ["a", "b", "d"]
    write_tar(tar, ["a", "b", "d"], before="x" * 600)
    said = notices(settings)
    assert "3 inputs are no longer where the store says (such as 't.tar/0': " in said and "--update" in said
    assert changes(extract(dataclasses.replace(settings, update=True))) == {"moved": 3}
    with tarfile.open(tar) as file:
        offsets = [member.offset_data for member in file.getmembers() if member.name.endswith(".ppm")]
    assert index(settings.out)["offset"].to_pylist() == offsets and list(verify(settings.out)) == []
    assert notices(settings) == ""


def notices(settings: ExtractConfig) -> str:
    """What a run prints that finds nothing to compute and is content."""
    with Heartbeat(Console(file=io.StringIO(), width=10_000)) as heartbeat:
        assert extract(settings, heartbeat).up_to_date
        return "".join(line for line in written(heartbeat.console).splitlines() if "reading" not in line)


def test_a_folder_that_moved_is_told_and_its_new_paths_are_brought_in(tmp_path: Path) -> None:
    for number in range(20):
        draw(tmp_path / f"here/class-{number % 2}/{number:02}.ppm", number)
    settings = config(tmp_path / "here", tmp_path / "store")
    extract(settings)
    before = inodes(settings.out)
    (tmp_path / "here").rename(tmp_path / "there")
    settings = dataclasses.replace(settings, data=(str(tmp_path / "there"),))
    for _ in range(2):  # it is told until the store has the new paths
        old, new = (tmp_path / place / "class-0/00.ppm" for place in ("here", "there"))
        assert f"20 inputs are no longer where the store says (such as 'class-0/00.ppm': {old} → {new})" in notices(
            settings
        )
    assert inodes(settings.out) == before
    assert changes(extract(dataclasses.replace(settings, update=True))) == {"moved": 20}
    paths = index(settings.out)["path"].to_pylist()
    assert sorted(paths) == sorted(map(str, (tmp_path / "there").rglob("*.ppm"))) and list(verify(settings.out)) == []
    now = inodes(settings.out)
    assert {name for name in before if before[name] == now[name]} == {name for name in now if "shard" in name}
    assert notices(settings) == ""


def test_a_store_whose_manifest_lacks_the_digests_is_recognised_and_gets_them(tmp_path: Path) -> None:
    """As an older embedx wrote it."""
    shutil.copyfile(sample.CHECKPOINT, tmp_path / "weights.safetensors")
    settings = ExtractConfig(
        backbone=sample.BACKBONE,
        checkpoint=str(tmp_path / "weights.safetensors"),
        data=(f"a={sample.IMAGES / 'val'}", f"b={sample.IMAGES / 'val'}"),
        out=tmp_path / "store",
        image_size=32,
        workers=0,
    )
    extract(settings)
    manifest = Manifest.read(settings.out)
    stated = manifest.plan.to_json()
    for terms in stated["splits"].values():
        del terms["places_sha256"], terms["metadata_sha256"]
    older = dataclasses.replace(manifest, plan=type(manifest.plan).from_json(stated))
    older.write(settings.out)
    assert look_for_work(settings)[0] is None and extract(settings).up_to_date
    assert Manifest.read(settings.out) == manifest and look_for_work(settings)[0] is not None
    summary, _ = look_for_work(dataclasses.replace(settings, data=(f"b={sample.IMAGES / 'val'}",), update=True))
    assert summary is not None and summary.kept == ("a",)  # without torch, too
