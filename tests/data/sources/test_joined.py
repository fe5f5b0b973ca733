"""Several sources as one split; the reference for metadata and order is pandas' concatenation."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import sys
import tarfile
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

import embedx
from embedx import ExtractConfig, sample
from embedx.data.plan import build_plan
from embedx.data.sources import parse_data
from embedx.data.sources.joined import concatenate
from embedx.data.sources.kinds import SourceOptions
from embedx.errors import ConfigError
from embedx.run.extract import extract
from embedx.run.recompute import recompute
from embedx.store.reading.verify import verify
from tests.data.sources.abilities import CASTS_STRUCTS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pictures() -> list[Path]:
    return sorted((sample.IMAGES / "val").rglob("*.*"))[:10]


@pytest.fixture
def sources(tmp_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Path]]:
    """A source of each kind by its location, with its images in order."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for picture in pictures[:2]:
        shutil.copy(picture, "photos")
    pd.DataFrame({"path": map(str, pictures[2:4]), "age": [30, 31]}).to_csv("listed.csv", index=False)
    rows = [{"bytes": picture.read_bytes(), "path": picture.name} for picture in pictures[4:6]]
    parquet.write_table(pa.table({"image": rows, "age": [0.5, None]}), "inside.parquet", row_group_size=1)
    with tarfile.open("shard.tar", "w") as archive:
        for picture in pictures[6:8]:
            archive.add(picture, picture.name)
    for picture in pictures[8:]:
        Path("classes/ring").mkdir(parents=True, exist_ok=True)
        Path("classes/ring", picture.name).symlink_to(picture)
    locations = ["photos", "listed.csv", "inside.parquet", "shard.tar"]
    return {location: pictures[2 * number : 2 * number + 2] for number, location in enumerate(locations)}


def test_any_two_kinds_are_read_each_by_its_own_reader_in_the_order_given(sources: dict[str, list[Path]]) -> None:
    for order in permutations(sources, 2):
        plan = build_plan(parse_data([f"train={location}" for location in order]), None).splits["train"]
        reader = pickle.loads(pickle.dumps(plan.reader))
        places = plan.table.select(["path", "offset", "size"]).to_pylist()
        assert [reader.read(**place) for place in places] == [
            picture.read_bytes() for location in order for picture in sources[location]
        ]


def test_a_split_of_all_kinds_is_extracted_verified_and_recomputed(
    sources: dict[str, list[Path]], pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"backbone": sample.BACKBONE, "weights": "sample", "batch_size": 4, "workers": 1}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(map(str, pictures[8:])).encode())))
    data = tuple(f"train={location}" for location in [*sources, "-", "torchvision:ImageFolder?root=classes"])
    extract(ExtractConfig(data=data, group_key="class", out=Path("store"), **settings))
    rows = embedx.open("store").load("train")
    assert len(rows.keys) == 12 and list(verify(Path("store"))) == []
    extract(ExtractConfig(data=(str(sample.IMAGES / "val"),), out=Path("reference"), **settings))
    reference = embedx.open("reference").load("all")
    expected = {Path(key).name: row for key, row in zip(reference.keys, reference.embeddings, strict=True)}
    for key, row in zip(rows.keys, rows.embeddings, strict=True):
        name = Path(key).name
        numbered = {"00000000": pictures[8].name, "00000001": pictures[9].name}
        match = next(picture for picture in expected if picture.startswith(numbered.get(name, name)))
        np.testing.assert_allclose(row, expected[match], atol=1e-5)
    found = recompute("store", 12)
    assert (found.rows, found.faults, found.lost_inputs) == (12, [], [])


def test_metadata_that_only_some_have_is_null_elsewhere(tmp_path: Path) -> None:
    frames = [
        pd.DataFrame({"path": ["b", "a"], "age": [3, 4], "site": ["x", "y"], "note": [1, 2]}),
        pd.DataFrame({"path": ["d"], "weight": [2.5], "age": [0.5], "note": ["n/a"]}),
        pd.DataFrame({"path": ["c"], "site": ["z"]}),
    ]
    for number, frame in enumerate(frames):
        frame.to_json(tmp_path / f"{number}.jsonl", orient="records", lines=True)
    specs = [f"x={tmp_path}/{number}.jsonl" for number in range(3)]
    table = build_plan(parse_data(specs), "site").splits["x"].table
    expected = pd.concat(frames).sort_values("site", kind="stable")
    expected["note"] = [str(note) if pd.notna(note) else None for note in expected["note"]]
    assert table["key"].to_pylist() == expected["path"].tolist()
    assert table.column_names[-4:] == ["age", "site", "note", "weight"]
    for name in table.column_names[-4:]:
        assert table[name].to_pylist() == expected[name].astype(object).where(expected[name].notna(), None).tolist()


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (([1], [2.5]), pa.float64(), [1.0, 2.5]),
        (([2**60 + 1], [0.5]), pa.string(), [str(2**60 + 1), "0.5"]),
        (([None], ["x"]), pa.string(), [None, "x"]),
        ((pa.array([None], pa.int64()), ["x"]), pa.string(), [None, "x"]),
        (([True], [1]), pa.string(), ["true", "1"]),
        (
            ([{"a": 1}], [{"b": 2}]),
            pa.struct({"a": pa.int64(), "b": pa.int64()}) if CASTS_STRUCTS else pa.string(),
            [{"a": 1, "b": None}, {"a": None, "b": 2}] if CASTS_STRUCTS else ['{"a": 1}', '{"b": 2}'],
        ),
        ((pa.array([1], pa.timestamp("s")), pa.array([5], pa.timestamp("ms"))), pa.timestamp("ms"), None),
        ((pa.array([2**63], pa.uint64()), [-1]), pa.string(), [str(2**63), "-1"]),
        (([None], [None]), pa.null(), [None, None]),
    ],
)
def test_types_that_differ_meet_in_the_one_that_holds_both_or_in_text(
    values: tuple[Any, Any], kind: pa.DataType, expected: list[Any] | None
) -> None:
    table = concatenate("x", [("here", pa.table({"age": values[0]})), ("there", pa.table({"age": values[1]}))])
    assert table["age"].type == kind
    assert expected is None or table["age"].to_pylist() == expected


def test_values_of_types_without_a_common_one_are_json() -> None:
    tables = [("a.parquet", pa.table({"age": [{"years": 1}]})), ("b.parquet", pa.table({"age": [1]}))]
    assert concatenate("split 'x'", tables)["age"].to_pylist() == ['{"years": 1}', "1"]


def test_classes_are_numbered_over_all_and_names_are_not_mixed_with_numbers(tmp_path: Path) -> None:
    for name, labels in {"a": ["cat", "eel"], "b": ["bee", None], "c": [3, 4]}.items():
        frame = pd.DataFrame({"path": [f"{name}{row}" for row in range(2)], "label": labels})
        frame.to_json(tmp_path / f"{name}.jsonl", orient="records", lines=True)
    plan = build_plan(parse_data([f"x={tmp_path}/a.jsonl", f"x={tmp_path}/b.jsonl"]), None)
    assert plan.classes == ["bee", "cat", "eel"]
    assert plan.splits["x"].table["target"].to_pylist() == [1, 2, 0, None]
    with pytest.raises(ConfigError, match=r"'target' is string in .*a\.jsonl and int64 in .*c\.jsonl"):
        build_plan(parse_data([f"x={tmp_path}/a.jsonl", f"x={tmp_path}/c.jsonl"]), None)


def test_keys_that_two_sources_have_are_refused_with_both_places_and_the_ways_out(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("1.jpg", f"{folder}.jpg"):
            (tmp_path / folder / name).touch()
    with pytest.raises(ConfigError) as refusal:
        build_plan(parse_data([str(tmp_path / "a"), str(tmp_path / "b")]), None)
    (fault,) = refusal.value.faults
    assert fault.startswith(
        f"split 'all': 1 keys occur more than once, such as '1.jpg' of {tmp_path}/a/1.jpg and {tmp_path}/b/1.jpg; "
    )
    assert f"NAME={tmp_path / 'b'}" in fault and "--key-column" in fault
    plan = build_plan(parse_data([str(tmp_path)]), None)  # one of the ways out
    assert plan.splits["all"].table["key"].to_pylist() == ["a/1.jpg", "a/a.jpg", "b/1.jpg", "b/b.jpg"]


def test_every_fault_of_every_source_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(ConfigError) as refusal:
        build_plan(parse_data([str(tmp_path / "a"), str(tmp_path / "b")]), None)
    assert [os.path.basename(fault.split(";")[0]) for fault in refusal.value.faults] == ["a", "b"]


def test_rows_of_features_are_joined_too(tmp_path: Path) -> None:
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", np.full((2, 3), ord(name), np.float32))
    (tmp_path / "each").mkdir()
    np.save(tmp_path / "each" / "c.npy", np.zeros(3, np.float32))
    specs = [f"x={tmp_path}/{name}" for name in ("b.npy", "each", "a.npy")]
    with pytest.raises(ConfigError, match="2 keys occur more than once"):  # FILE/ROW, of files of the same name
        build_plan(parse_data([specs[0], specs[0]], SourceOptions(content="features")), None)
    plan = build_plan(parse_data(specs, SourceOptions(content="features")), None).splits["x"]
    places = plan.table.select(["path", "offset", "size"]).to_pylist()
    first = [np.load(io.BytesIO(plan.reader.read(**place))).ravel()[0] for place in places]
    assert first == [98, 98, 0, 97, 97]
