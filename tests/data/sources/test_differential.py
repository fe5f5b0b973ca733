"""Two hundred tables of all types and forms: a plan equals what pandas or duckdb reads, or is refused by column."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from embedx.data.plan import Plan, build_plan
from embedx.data.sources import parse_data
from embedx.data.sources.kinds import SourceOptions
from embedx.errors import ConfigError
from embedx.store.format.index_file import PARQUET_OPTIONS
from tests.data.sources.abilities import WRITES_VIEWS
from tests.runs import SEED

TABLES = 200
ROWS = 6

Cells = Callable[[random.Random], str]
TEXTS: dict[str, Cells] = {
    "whole": lambda rng: str(rng.randint(-3, 20)),
    "padded": lambda rng: f"{rng.randint(0, 12):0{rng.randint(1, 3)}d}",
    "fraction": lambda rng: rng.choice(["2.50", "2.5", "1e3", "-0", "0.1", "1.0", "7"]),
    "truth": lambda rng: rng.choice(["True", "true", "false", "FALSE"]),
    "missing": lambda rng: rng.choice(["NA", "NaN", "null", "", "3", "nan"]),
    "date": lambda rng: rng.choice(["2024-01-31", "2023-12-01"]),
    "time": lambda rng: rng.choice(["2024-01-31 10:00:00", "2024-01-31T10:00:00", "2024-01-31"]),
    "spaced": lambda rng: rng.choice([" 1", "1 ", "1", " x "]),
    "quoted": lambda rng: rng.choice(['a "b"', "a, b", "two\nlines", "ü"]),
    "large": lambda rng: rng.choice(["9007199254740993", "18446744073709551615", "123456789012345678901234567890"]),
}
TYPED: dict[str, Callable[[random.Random], pa.Array]] = {
    "int8": lambda rng: pa.array([rng.randint(-9, 9) for _ in range(ROWS)], pa.int8()),
    "uint64": lambda rng: pa.array([2**64 - 1, *[rng.randint(0, 9) for _ in range(ROWS - 1)]], pa.uint64()),
    "float": lambda rng: pa.array([rng.choice([2.5, 1.0, None, -0.25]) for _ in range(ROWS)], pa.float64()),
    "whole_float": lambda rng: pa.array([rng.choice([2.0, 1.0, None]) for _ in range(ROWS)], pa.float32()),
    "bool": lambda rng: pa.array([rng.random() < 0.5 for _ in range(ROWS)]),
    "decimal": lambda rng: pa.array(
        [Decimal(rng.randint(0, 999)).scaleb(-2) for _ in range(ROWS)], pa.decimal128(5, 2)
    ),
    "date": lambda rng: pa.array([datetime.date(2024, 1, rng.randint(1, 31)) for _ in range(ROWS)]),
    "time": lambda rng: pa.array([rng.randint(0, 86399) for _ in range(ROWS)], pa.time32("s")),
    "timestamp": lambda rng: pa.array([rng.randint(0, 2**31) for _ in range(ROWS)], pa.timestamp("us", "UTC")),
    "duration": lambda rng: pa.array([rng.randint(0, 99) for _ in range(ROWS)], pa.duration("s")),
    "view": lambda rng: pa.array(
        [rng.choice(["a", "01", None]) for _ in range(ROWS)], pa.string_view() if WRITES_VIEWS else pa.string()
    ),
    "dictionary": lambda rng: pa.array([rng.choice(["a", "01", None]) for _ in range(ROWS)]).dictionary_encode(),
    "large_string": lambda rng: pa.array([rng.choice(["a", "01"]) for _ in range(ROWS)], pa.large_string()),
    "list": lambda rng: pa.array([[rng.randint(0, 9)] * rng.randint(0, 2) for _ in range(ROWS)]),
    "struct": lambda rng: pa.array([{"a": rng.randint(0, 9), "b": None} for _ in range(ROWS)]),
    "map": lambda rng: pa.array([[("k", rng.randint(0, 9))] for _ in range(ROWS)], pa.map_(pa.string(), pa.int64())),
    "null": lambda rng: pa.nulls(ROWS),
}
FORMS = ("csv", "tsv", "csv.gz", "jsonl", "jsonl.gz", "parquet")


def write_text(path: Path, columns: Mapping[str, Sequence[str]]) -> None:
    content = io.StringIO()
    writer = csv.writer(content, delimiter="\t" if ".tsv" in path.name else ",", lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    data = content.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_json(path: Path, columns: Mapping[str, Sequence[str]]) -> None:
    """Writes cells that are JSON's numbers, truths or nulls as such, and others as strings."""
    lines = []
    for row in zip(*columns.values(), strict=True):
        cells = [cell if is_json(cell) else json.dumps(cell) for cell in row]
        lines.append("{" + ", ".join(f"{json.dumps(n)}: {c}" for n, c in zip(columns, cells, strict=True)) + "}\n")
    data = "".join(lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def is_json(cell: str) -> bool:
    try:
        return cell == cell.strip() and not isinstance(json.loads(cell), str) and cell != "NaN"
    except ValueError:
        return False


def names_of(path: Path, columns: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Every cell as the text that stands there, None for an empty one, by pandas or the json module."""
    if ".jsonl" in path.name:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        rows = [json.loads(line, parse_float=str, parse_int=str) for line in data.splitlines()]
        truths = {True: "true", False: "false"}
        cells = [{n: truths[v] if isinstance(v, bool) else v for n, v in row.items()} for row in rows]
        return pd.DataFrame(cells, dtype=object)
    frame = pd.read_csv(path, dtype=str, keep_default_na=False, sep="\t" if ".tsv" in path.name else ",")
    return frame.astype(object).where(frame != "", None)


def plan_of(path: Path, **options: Any) -> Plan:
    settings = SourceOptions(key_column="id", **options)
    return build_plan(parse_data([str(path)], settings), settings.group_key)


def attempt(path: Path, **options: Any) -> pa.Table | None:
    """The plan's table in the order of the keys, or None if it is refused and the message names a column."""
    try:
        made = plan_of(path, **options)
    except ConfigError as error:
        assert any(named in str(error) for named in ("'t'", "--group-key g: "))
        return None
    table = made.splits["all"].table.sort_by("key")
    names = pa.array(made.classes, pa.string())
    classes = names.take(table["target"].combine_chunks()) if made.classes else table["target"]
    return table.append_column("class", classes)


def whole_numbers(texts: Sequence[str | None], missing: Collection[str]) -> list[int | None] | None:
    """Targets by the rule that README tells, from texts: numbers if all are spelled as `7`, or all as `7.0`."""
    given = [text for text in texts if text is not None and text not in missing]
    for ending in ("", ".0"):
        numbers = {text: _whole(text.removesuffix(ending)) for text in given if text.endswith(ending)}
        if all(str(numbers.get(text)) + ending == text for text in given):
            return [numbers.get(text) if text is not None else None for text in texts]
    return None


def _whole(text: str) -> int | None:
    try:
        return int(text) if -(2**63) <= int(text) < 2**63 else None
    except ValueError:
        return None


def texts_agree(path: Path, rng: random.Random) -> None:
    kinds = rng.sample(list(TEXTS), 2)
    columns = {"id": [str(row) for row in range(ROWS)], "path": [f"{row}.png" for row in range(ROWS)]}
    columns |= {name: [TEXTS[kind](rng) for _ in range(ROWS)] for name, kind in zip("gt", kinds, strict=True)}
    (write_json if ".jsonl" in path.name else write_text)(path, columns)
    expected = names_of(path, columns)
    missing = () if ".jsonl" in path.name else ("NA", "NaN", "null", "nan")  # JSON has a null of its own
    grouped = attempt(path, group_key="g", target_column="t")
    if grouped is None:  # fractions are neither names nor whole numbers
        assert set(expected["t"]) & {"2.50", "2.5", "0.1"}
        grouped = attempt(path, group_key="g")
        assert grouped is not None
    elif (numbers := whole_numbers(expected["t"], missing)) is not None:
        assert grouped["class"].to_pylist() == numbers
    else:
        assert grouped["class"].to_pylist() == expected["t"].tolist()
    assert grouped["group"].to_pylist() == expected["g"].tolist()
    values_agree(path, grouped)


def values_agree(path: Path, table: pa.Table) -> None:
    """Numbers in the plan are those that pandas reads."""
    if ".jsonl" in path.name:
        return
    frame = pd.read_csv(path, sep="\t" if ".tsv" in path.name else ",")
    for name in "gt":
        if pa.types.is_integer(table[name].type) or pa.types.is_floating(table[name].type):
            found = pd.to_numeric(frame[name]).astype(object)
            assert table[name].to_pylist() == found.where(found.notna(), None).tolist()


def typed_agree(path: Path, rng: random.Random) -> None:
    group, kind = rng.choice(list(TYPED)), rng.choice(list(TYPED))
    columns = {"g": TYPED[group](rng), "x": TYPED[kind](rng)}
    ids = [str(row) for row in range(ROWS)]
    pq.write_table(pa.table({"id": ids, "path": ids, **columns}), path)
    table = attempt(path, group_key="g")
    if table is None:
        assert group in ("list", "struct", "map")
        table = attempt(path)
    assert table is not None
    pq.write_table(table.drop_columns(["class"]), out := io.BytesIO(), **PARQUET_OPTIONS)
    stored = pq.read_table(out)
    with duckdb.connect() as connection:
        own = connection.sql(f"from read_parquet('{path}') order by id").to_arrow_table()
    assert stored["x"].to_pylist() == pq.read_table(path)["x"].to_pylist()
    if kind not in ("duration", "view"):  # duckdb reads their numbers, and no view
        theirs = own["x"].to_pylist()
        assert list(map(comparable, stored["x"].to_pylist())) == list(map(comparable, theirs))
    if "group" in table.column_names and table["group"].null_count < ROWS and group not in ("time", "timestamp"):
        texts = [spelled(value.as_py()) for value in pc.cast(columns["g"], columns["g"].type)]
        assert table["group"].to_pylist() == texts or group == "duration"


def comparable(value: Any) -> Any:
    return str(value.replace(tzinfo=None)) if isinstance(value, datetime.datetime) else value


def spelled(value: Any) -> str | None:
    """A value as text: Python's, but `2` for 2.0 and `true` for True."""
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None else f"{value:g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize("part", range(4))
def test_tables_are_read_as_pandas_and_duckdb_read_them_or_refused_by_column(tmp_path: Path, part: int) -> None:
    for number in range(part, TABLES, 4):
        rng = random.Random(SEED + number)
        form = FORMS[number // 4 % len(FORMS)]
        path = tmp_path / f"t{number}.{form}"
        (typed_agree if form == "parquet" else texts_agree)(path, rng)
