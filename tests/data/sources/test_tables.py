"""Tables of several files; the reference for partitions is duckdb, for splits the layouts that the hub documents."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

import embedx
from embedx import ExtractConfig, sample
from embedx.data.plan import Plan, build_plan
from embedx.data.sources import parse_data
from embedx.data.sources.kinds import SourceOptions
from embedx.errors import ConfigError
from embedx.run.extract import extract
from embedx.run.recompute import recompute

pytestmark = pytest.mark.usefixtures("one_thread")

PICTURES = sorted((sample.IMAGES / "val").rglob("*.*"))[:6]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(path: str, pictures: Sequence[Path] = (), **columns: Sequence[Any]) -> None:
    """Writes a table of pictures: Parquet has them inside, other formats list their paths."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    inside = [{"bytes": picture.read_bytes(), "path": picture.name} for picture in pictures]
    if path.endswith(".parquet"):
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        parquet.write_table(pa.table({"image": pa.array(inside, kind), **columns}), file)
    elif path.endswith(".jsonl"):
        pd.DataFrame({"path": map(str, pictures), **columns}).to_json(file, orient="records", lines=True)
    else:
        pd.DataFrame({"path": map(str, pictures), **columns}).to_csv(file, index=False)


def planned(*specs: str, **options: Any) -> Plan:
    return build_plan(parse_data(specs, SourceOptions(**options)), None)


def fault(*specs: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as refusal:
        planned(*specs, **options)
    return str(refusal.value)


def files_of(plan: Plan) -> dict[str, list[str]]:
    """The files of each split, by their keys, all of which are `FILE/PICTURE` here."""
    return {
        name: [os.path.dirname(key) for key in split.table["key"].to_pylist()] for name, split in plan.splits.items()
    }


HUB = {
    "its own shards": (
        [f"data/{name}.parquet" for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001-a")],
        {"train": 2, "test": 1},
    ),
    "splits of any name beside a usual one": (
        ["data/test-00000-of-00001.parquet", "data/unsupervised-00000-of-00001.parquet"],
        {"test": 1, "unsupervised": 1},
    ),
    "its conversion to Parquet": (
        ["default/train/0000.parquet", "default/train/0001.parquet", "default/extra.2/0000.parquet"],
        {"train": 2, "extra.2": 1},
    ),
    "folders": (["train/a.parquet", "train/b.parquet", "validation/c.parquet"], {"train": 2, "validation": 1}),
    "folders with more to their names": (["my-train-set/a.parquet", "dev_v2/b.parquet"], {"train": 1, "dev": 1}),
    "names": (["train.parquet", "val.parquet"], {"train": 1, "val": 1}),
    "names with more to them": (["cats-training-1.parquet", "cats.TEST.2.parquet"], {"training": 1, "TEST": 1}),
    "folders before names": (["train/test_a.parquet", "eval/test_b.parquet"], {"train": 1, "eval": 1}),
    "words inside of words": (["contest.parquet", "trainer.parquet", "evaluate/a.parquet"], {"all": 3}),
    "shards of anything": (["part-00000-of-00002.parquet", "part-00001-of-00002.parquet"], {"all": 2}),
    "numbers": (["chunks/0000.parquet", "chunks/0001.parquet"], {"all": 2}),
    "one file": (["a.parquet"], {"all": 1}),
}  # fmt: skip
BESIDE = ["README.md", ".gitattributes", "_SUCCESS", "_metadata", "_common_metadata", "_committed_123", "a.parquet.crc"]


@pytest.mark.parametrize(("files", "expected"), HUB.values(), ids=HUB)
def test_splits_are_those_that_the_hub_would_see(files: list[str], expected: dict[str, int]) -> None:
    for file in files:
        put(f"repo/{file}", PICTURES[:1])
    for name in BESIDE:
        Path("repo", name).write_bytes(b"what is no table")
    for hidden in (".cache/x.parquet", "_temporary/0/x.parquet", ".x.parquet", "_x.parquet"):
        put(f"repo/{hidden}", PICTURES[:1])
    plan = planned("repo")
    assert {split: len(some) for split, some in plan.splits.items()} == expected
    assert files_of(plan) == files_of(planned("repo/**/*.parquet")) and sorted(
        [file for some in files_of(plan).values() for file in some]
    ) == sorted(files)
    assert sorted(files_of(planned("everything=repo"))["everything"]) == sorted(files)
    for split in expected:
        assert files_of(planned(f"{split}=repo")) == {split: files_of(plan)[split]}


def test_a_file_that_tells_no_split_beside_others_that_do_is_refused_and_the_ways_out_work() -> None:
    for name in ("train-a", "test-a", "more"):
        put(f"repo/{name}.parquet", PICTURES[:1])
    found = fault("repo")
    assert "splits test, train" in found and f"NAME={os.getcwd()}/repo/more.parquet" in found and "all=repo" in found
    assert len(planned("all=repo").splits["all"]) == 3
    assert set(planned("train=repo", "test=repo", "other=repo/more.parquet").splits) == {"train", "test", "other"}


FORMATS = (".parquet", ".csv", ".jsonl", ".csv.gz", ".tsv")


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_partitions_are_columns_as_duckdb_reads_them(suffix: str) -> None:
    values = {"year": [2023, 2024], "site": ["north side", "a/b"], "day": ["2024-01-31", "__HIVE_DEFAULT_PARTITION__"]}
    for row, (year, site, day) in enumerate(zip(*values.values(), strict=True)):
        folder = f"lake/year={year}/site={site.replace(' ', '%20').replace('/', '%2F')}/day={day}"
        put(f"{folder}/part-0{suffix}", PICTURES[2 * row : 2 * row + 2], age=[row, row + 10])
    Path("lake/_SUCCESS").touch()
    reader = {".parquet": "read_parquet", ".csv": "read_csv", ".jsonl": "read_json"}[suffix]
    files = f"{reader}('lake/**/*{suffix}', hive_partitioning=true)"
    relation = duckdb.sql(f"SELECT age, year, site FROM {files} ORDER BY age")
    assert relation is not None
    expected = relation.to_arrow_table()
    for location in ("lake", f"lake/**/*{suffix}", f"lake/year={{2023,2024}}/*/*/*{suffix}"):
        table = planned(f"x={location}").splits["x"].table.sort_by("age")
        assert table.select(["age", "year", "site"]).to_pydict() == expected.to_pydict()
        assert table["day"].to_pylist() == ["2024-01-31", None, "2024-01-31", None]
    assert list(planned("lake", split_column="year").splits) == ["2023", "2024"]
    assert len(planned("2024=lake", split_column="year").splits["2024"]) == 2
    assert "'year' names no such split; it has 2023, 2024" in fault("1999=lake", split_column="year")
    assert "label" not in table.column_names


def test_partitions_keep_the_text_of_their_names_unless_all_are_numbers() -> None:
    for month, label in (("01", "7"), ("12", "8")):
        put(f"lake/month={month}/label={label}/a.parquet", PICTURES[:1])
    table = planned("lake").splits["all"].table
    assert (table["month"].to_pylist(), table["label"].to_pylist()) == (["01", "12"], [7, 8])
    assert table["target"].to_pylist() == [7, 8]


@pytest.mark.parametrize(
    "pattern", ["parts/*.parquet", "parts/part-{000..002}.parquet", "parts/part-*", "parts/{part-*,x}.parquet"]
)
def test_patterns_name_parts_in_order(pattern: str) -> None:
    for number, name in enumerate(["part-000", "part-001", "part-002", "_part-003"]):
        put(f"parts/{name}.parquet", PICTURES[number : number + 1], number=[number])
    if ",x" in pattern:
        put("parts/x.parquet", PICTURES[5:], number=[5])
    table = planned(pattern).splits["all"].table
    assert table["number"].to_pylist() == [0, 1, 2, 5][: len(table)]
    assert table["key"].to_pylist()[:2] == [
        f"part-000.parquet/{PICTURES[0].name}",
        f"part-001.parquet/{PICTURES[1].name}",
    ]


def test_braces_of_splits_are_splits() -> None:
    for split in ("train", "val"):
        put(f"{split}.csv", PICTURES[:1])
        put(f"by/{split}/x.csv", PICTURES[:1])
    assert list(planned("{train,val}.csv").splits) == list(planned("by/{train,val}/x.csv").splits) == ["train", "val"]
    assert "there is no file" in fault("{train,test}.csv") and "there is no such file" in fault("*.tsv")


def test_keys_stay_when_parts_are_added_and_hold_the_folders_of_relative_paths() -> None:
    for folder in ("a", "b"):
        Path("set", folder).mkdir(parents=True)
        Path("set", folder, "1.jpg").symlink_to(PICTURES[0])
        Path("set", folder, "listed.csv").write_text(
            f"path\n1.jpg\n{os.getcwd()}/2.jpg\n" if folder == "a" else "path\n1.jpg\n"
        )
    plan = planned("set/*/listed.csv").splits["all"]
    assert plan.table["key"].to_pylist() == ["a/1.jpg", f"{os.getcwd()}/2.jpg", "b/1.jpg"]
    assert plan.table["path"][2].as_py() == os.fsencode(os.path.abspath("set/b/1.jpg"))
    put("parts/0.parquet", PICTURES[:2])
    before = planned("parts").splits["all"].table["key"].to_pylist()
    put("parts/1.parquet", PICTURES[:2])
    assert planned("parts").splits["all"].table["key"].to_pylist()[:2] == before
    assert "--key-column" in fault("set/*/listed.csv", root=".")


def test_columns_of_other_types_meet_and_files_without_rows_are_left_out() -> None:
    put("parts/0.csv", PICTURES[:1], age=[3])
    put("parts/1.csv", PICTURES[1:2], age=["old"])
    put("parts/2.csv", [], age=[])
    Path("parts/3.csv").touch()
    assert planned("parts").splits["all"].table["age"].to_pylist() == ["3", "old"]
    put("none/0.csv", [])
    Path("none/1.csv").touch()
    assert "none of its 2 files has rows" in fault("none")
    assert "the table is empty" in fault("none/1.csv") and "the table has no rows" in fault("none/0.csv")


def test_files_with_other_columns_are_refused_and_the_way_out_is_one_split_of_both() -> None:
    put("parts/0.parquet", PICTURES[:1], age=[3])
    put("parts/1.parquet", PICTURES[1:2])
    first, second = (f"{os.getcwd()}/parts/{number}.parquet" for number in range(2))
    found = fault("parts")
    assert f"{second} has no column 'age', and {first} has one" in found
    advised = found.partition("join the files or patterns of both as ")[2].replace("--data ", "").split()
    assert advised == [f"all={first}", f"all={second}"]
    assert planned(*advised).splits["all"].table["age"].to_pylist() == [3, None]


def test_folders_that_are_not_one_table_are_refused_with_the_way_out() -> None:
    put("two/a.csv", PICTURES[:1])
    put("two/b.parquet", PICTURES[1:2])
    put("two/c/d.parquet", PICTURES[2:3])
    found = fault("two")
    assert "several formats (2 .parquet and 1 .csv)" in found and "two/**/*.parquet" in found
    assert len(planned("two/**/*.parquet").splits["all"]) == 2
    signs = {"Delta": "_delta_log/0.json", "Hudi": ".hoodie/hoodie.properties", "Iceberg": "metadata/v1.metadata.json"}
    for format, sign in signs.items():
        put(f"{format}/a.parquet", PICTURES[:1])
        Path(format, sign).parent.mkdir()
        Path(format, sign).touch()
        assert f"the format {format}" in fault(format) and f"{format}/**/*.parquet" in fault(format)
        assert len(planned(f"{format}/**/*.parquet").splits["all"]) == 1
    Path("nothing").mkdir()
    Path("nothing/_metadata.parquet").touch()
    assert "for tables named .arrow .csv .jsonl .parquet .tsv" in fault("nothing")


def test_a_table_beside_images_leaves_a_folder_one_of_images() -> None:
    Path("photos/star").mkdir(parents=True)
    Path("photos/star/1.jpg").symlink_to(PICTURES[0])
    put("photos/labels.csv", PICTURES[1:2])
    assert planned("photos").splits["all"].table["key"].to_pylist() == ["star/1.jpg"]
    assert "--key-column is for tables" in fault("photos", key_column="path")
    put("tables/labels.csv", PICTURES[1:2])
    assert len(planned("tables", key_column="path").splits["all"]) == 1


def test_every_fault_of_every_file_is_told() -> None:
    for number in range(2):
        Path("parts").mkdir(exist_ok=True)
        Path(f"parts/{number}.parquet").write_bytes(b"no Parquet")
    assert [f"parts/{number}.parquet: can't be read as Parquet" in fault("parts") for number in range(2)] == [True] * 2


def test_a_folder_of_the_hub_is_extracted_and_recomputed_as_its_images_are() -> None:
    for number, split in enumerate(["train", "train", "test"]):
        name = f"repo/data/{split}-{number:05d}-of-00002.parquet"
        put(name, PICTURES[2 * number : 2 * number + 2], label=[number, None])
    settings: dict[str, Any] = {"backbone": sample.BACKBONE, "weights": "sample", "batch_size": 4, "workers": 0}
    extract(ExtractConfig(data=("repo",), group_key="label", out=Path("store"), **settings))
    extract(ExtractConfig(data=(str(sample.IMAGES / "val"),), out=Path("images"), **settings))
    reference = embedx.open("images").load("all")
    expected = {Path(key).name: row for key, row in zip(reference.keys, reference.embeddings, strict=True)}
    for split, count in (("train", 4), ("test", 2)):
        rows = embedx.open("store").load(split)
        assert len(rows.keys) == count
        for key, row in zip(rows.keys, rows.embeddings, strict=True):
            np.testing.assert_allclose(row, expected[Path(key).name], atol=1e-5)
    found = recompute("store", 6)
    assert (found.rows, found.faults, found.lost_inputs) == (6, [], [])
    reader = pickle.loads(pickle.dumps(planned("train=repo").splits["train"].reader))
    assert (
        reader.read(os.fsencode(os.path.abspath("repo/data/train-00001-of-00002.parquet")), 1, None)
        == PICTURES[3].read_bytes()
    )


def save_to_disk(folder: str, parts: Sequence[Sequence[Path]]) -> None:
    """Writes a folder as `Dataset.save_to_disk` of Hugging Face's datasets does, and a cache that it leaves there."""
    Path(folder).mkdir(parents=True)
    names = [f"data-{number:05d}-of-{len(parts):05d}.arrow" for number in range(len(parts))]
    for name, pictures in zip([*names, "cache-0123456789abcdef.arrow"], [*parts, PICTURES[:1]], strict=True):
        rows = [{"bytes": picture.read_bytes(), "path": picture.name} for picture in pictures]
        table = pa.table({"image": rows, "label": list(range(len(rows)))})
        with pa.OSFile(f"{folder}/{name}", "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=1)
    Path(folder, "dataset_info.json").write_text("{}")
    Path(folder, "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))


def test_saved_data_sets_are_read_with_their_splits_and_without_their_caches() -> None:
    save_to_disk("saved/train", [PICTURES[:2], PICTURES[2:3]])
    save_to_disk("saved/gold", [PICTURES[3:5]])
    Path("saved/dataset_dict.json").write_text(json.dumps({"splits": ["train", "gold"]}))
    save_to_disk("single", [PICTURES[:3]])
    expected = {"saved": {"gold": PICTURES[3:5], "train": PICTURES[:3]}, "single": {"all": PICTURES[:3]}}
    expected["saved/train"] = {"all": PICTURES[:3]}
    for location, splits in expected.items():
        plan = planned(location)
        assert list(plan.splits) == list(splits)
        for name, split in plan.splits.items():
            reader = pickle.loads(pickle.dumps(split.reader))
            places = split.table.select(["path", "offset", "size"]).to_pylist()
            assert [reader.read(**place) for place in places] == [picture.read_bytes() for picture in splits[name]]
            assert split.table["target"].to_pylist() == [0, 1, 0][: len(splits[name])] or location == "single"
    table = pa.table({"path": ["a", "b"]})
    with pa.OSFile("listed.arrow", "wb") as file, pa.ipc.new_file(file, table.schema) as footer:
        footer.write_table(table)
    assert planned("listed.arrow").splits["all"].table["key"].to_pylist() == ["a", "b"]
    Path("broken.arrow").write_bytes(b"no Arrow")
    assert "broken.arrow: can't be read as Arrow" in fault("broken.arrow")


def test_columns_of_taken_names_are_refused_by_name_in_files_of_a_folder(workplace: Path) -> None:
    for name in "ab":
        put(f"t/{name}.csv", PICTURES[:1], key=["x"])
    assert "columns can't be named key" in fault("t")
