"""The text that stands in a source: groups, keys, splits and classes are read as it, other columns as typed values."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedx.data.plan import Plan, build_plan
from embedx.data.sources import parse_data
from embedx.data.sources.kinds import SourceOptions
from embedx.errors import ConfigError

TEXTS = ("01", "1", "2.50", "2.5", "1e3", "1000", "True", "NaN", "NA", "null", " 1", "1 ", "-0", "0", "2024-01-31")
NUMBERS = ("01", "1", " 1", "-0", "0", "NA")
FRACTIONS = ("2.50", "2.5", "1e3", "1000", "NaN", "1.0")
TRUTHS = ("True", "false")
DATES = ("2024-01-31", "NA")
TIMES = ("2024-01-31 10:00", "2024-01-31T10:00:00")


def rows(table: Path, texts: Sequence[str]) -> Path:
    """Writes the texts as the column `x` of a CSV, TSV or JSONL table."""
    if table.suffix == ".jsonl":
        table.write_text("".join(f'{{"path": "{row}", "x": {text}}}\n' for row, text in enumerate(texts)))
    else:
        comma = "\t" if table.suffix == ".tsv" else ","
        table.write_text("".join(f"{row}{comma}{text}\n" for row, text in [("path", "x"), *enumerate(texts)]))
    return table


def plan(*data: str | Path, group_key: str | None = None, **options: Any) -> Plan:
    return build_plan(parse_data(list(map(str, data)), SourceOptions(group_key=group_key, **options)), group_key)


def column(made: Plan, split: str, name: str) -> list[Any]:
    """A column in the order of the rows' paths, whatever that of the groups."""
    table = made.splits[split].table
    return [value for _, value in sorted(zip(table["path"].to_pylist(), table[name].to_pylist(), strict=True))]


@pytest.mark.parametrize("texts", [TEXTS, NUMBERS, FRACTIONS, TRUTHS, DATES, TIMES], ids=str)
@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_groups_keys_and_splits_are_the_text_that_stands_there(
    tmp_path: Path, form: str, texts: tuple[str, ...]
) -> None:
    table = rows(tmp_path / f"t.{form}", texts)
    made = build_plan(parse_data([str(table)], SourceOptions(group_key="x")), "x")
    samples = made.splits["all"].table.sort_by("path")
    by_path = dict(zip(samples["path"].to_pylist(), samples["group"].to_pylist(), strict=True))
    assert [by_path[bytes(tmp_path / str(row))] for row in range(len(texts))] == list(texts)
    assert samples["x"].to_pylist() == samples["group"].to_pylist()
    assert list(parse_data([str(table)], SourceOptions(split_column="x"))) == list(texts)
    assert parse_data([str(table)], SourceOptions(key_column="x"))["all"].scan()["key"].to_pylist() == list(texts)


def test_groups_in_json_lines_are_spelled_as_there(tmp_path: Path) -> None:
    texts = ["2.50", "2.5", "1e3", "1", '"01"', "true", "null", '"2024-01-31"', '"2024-01-31T00:00:00"']
    groups = ["2.50", "2.5", "1e3", "1", "01", "true", None, "2024-01-31", "2024-01-31T00:00:00"]
    for chosen in (slice(None), slice(0, 4), slice(7, 9)):
        made = plan(rows(tmp_path / "t.jsonl", texts[chosen]), group_key="x")
        assert column(made, "all", "group") == column(made, "all", "x") == groups[chosen]


def test_a_group_of_a_typed_table_has_one_text(tmp_path: Path) -> None:
    values = {"float": [2.5, 2.0], "integer": [7, 10], "decimal": pa.array(["2.50", "1.00"]).cast(pa.decimal128(4, 2))}
    for name, (first, second) in {"float": ("2.5", "2"), "integer": ("7", "10"), "decimal": ("2.50", "1.00")}.items():
        pq.write_table(pa.table({"path": ["0", "1"], "x": values[name]}), tmp_path / "t.parquet")
        made = plan(tmp_path / "t.parquet", group_key="x")
        assert column(made, "all", "group") == [first, second]
        assert made.splits["all"].table["x"].type == pa.array(values[name]).type


def test_other_columns_and_groups_that_are_spelled_as_usual_keep_the_guessed_types(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,n,f,b,d,g\na,01,2.50,True,2024-01-31,1\nb,1,1e3,false,NA,2\n")
    table = plan(tmp_path / "t.csv", group_key="g").splits["all"].table
    assert [str(table[name].type) for name in "nfbdg"] == ["int64", "double", "bool", "date32[day]", "int64"]
    assert table["f"].to_pylist() == [2.5, 1000] and table["group"].to_pylist() == ["1", "2"]
    assert not [name for name in table.column_names if "\0" in name]


@pytest.mark.parametrize(
    ("train", "val", "classes", "targets"),
    [
        (("007", "7"), ("7",), ["007", "7"], ([0, 1], [1])),
        (("7", "8"), ("007",), ["007", "7", "8"], ([1, 2], [0])),
        (("7", "8"), ("8",), [], ([7, 8], [8])),
        (("7", "NA"), ("8",), [], ([7, None], [8])),
        (("7", "-0"), ("8",), ["-0", "7", "8"], ([1, 0], [2])),
        (("1.0", "2.0"), ("1",), [], ([1, 2], [1])),
        (("1.0", "1"), ("1",), ["1", "1.0"], ([1, 0], [0])),
        (("True", "False"), ("true",), ["False", "True", "true"], ([1, 0], [2])),
        (("2024-01-31", "2023-01-01"), ("2024-01-31",), ["2023-01-01", "2024-01-31"], ([1, 0], [1])),
        (("1", "A1"), ("1",), ["1", "A1"], ([0, 1], [0])),
        (("1", "A1"), ("2",), "numbers in split 'val', and names such as '1' in another", None),
    ],
)
def test_classes_are_decided_once_for_all_splits(
    tmp_path: Path, train: tuple[str, ...], val: tuple[str, ...], classes: list[str] | str, targets: Any
) -> None:
    data = [f"{name}={rows(tmp_path / f'{name}.csv', texts)}" for name, texts in (("train", train), ("val", val))]
    if isinstance(classes, str):
        with pytest.raises(ConfigError, match=classes):
            plan(*data, target_column="x")
        return
    made = plan(*data, target_column="x")
    assert made.classes == classes
    assert (column(made, "train", "target"), column(made, "val", "target")) == targets
    for name, texts in (("train", train), ("val", val)):
        if classes:  # the column beside the targets tells the same names
            assert list(map(str, column(made, name, "x"))) == list(texts)


@pytest.mark.parametrize("same_split", [False, True])
def test_a_column_of_numbers_here_and_text_there_is_text_as_written(tmp_path: Path, same_split: bool) -> None:
    for name, plates in {"a": ("01", "2.50"), "b": ("A1", "x")}.items():
        (tmp_path / f"{name}.csv").write_text(f"path,plate,n\n{name}0,{plates[0]},1\n{name}1,{plates[1]},2.5\n")
    made = plan(*(f"{'x' if same_split else name}={tmp_path}/{name}.csv" for name in "ab"))
    found = [value for split in made.splits for value in column(made, split, "plate")]
    assert found == ["01", "2.50", "A1", "x"]
    assert {str(split.table["n"].type) for split in made.splits.values()} == {"double"}


def tar(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in ({"a_jpg": b"", "b_jpg": b""} | members).items():
            member = tarfile.TarInfo(name.replace("_", "."))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_members_of_tars_are_read_as_they_are_written(tmp_path: Path) -> None:
    members = {
        "a_cls": b"007",
        "b_cls": b"7",
        "a_json": json.dumps({"patient": "@", "mixed": 1, "none": {}}).replace('"@"', "2.50").encode(),
        "b_json": b'{"patient": 2.5,\n "mixed": "old", "name": "caf\xe9"}',
        "a_txt": b"caf\xe9",
    }
    made = plan(tar(tmp_path / "t.tar", **members), group_key="patient")
    assert made.classes == ["007", "7"]
    table = {row["key"][-1]: row for row in made.splits["all"].table.to_pylist()}
    assert (table["a"]["cls"], table["a"]["group"], table["a"]["mixed"]) == ("007", "2.50", "1")
    assert (table["b"]["cls"], table["b"]["group"], table["b"]["mixed"]) == ("7", "2.5", "old")
    assert table["a"]["none"] is None and table["a"]["txt"] == table["b"]["name"] == r"caf\xe9"
