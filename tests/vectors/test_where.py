"""Conditions on the columns of the index."""

from __future__ import annotations

import pyarrow as pa
import pytest

from embedx.errors import ConfigError
from embedx.vectors.where import matching_rows

ROWS = pa.table(
    {
        "key": ["a/1.png", "b/2.png", "c'3.png", "d"],
        "group": ["cat", "dog", None, "Cat"],
        "offset": pa.array([None, 5, 7, 0], pa.int64()),
        "Größe": [1.5, 2.5, None, -1.0],
        "two words": [1, 2, 3, 4],
    }
)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("group = 'cat'", [0]),
        ("GROUP in ('cat', 'dog') and offset is not null", [1]),
        ("group is null", [2]),
        ("not (group = 'cat')", [1, 3]),  # NULL is neither
        ("offset between 5 and 7", [1, 2]),
        ('"group" = \'dog\' or "two words" = 4', [1, 3]),
        ("Größe > 1  -- a remark", [0, 1]),
        ("key like '%.png' and lower(group) = 'cat'", [0]),
        ("key = 'c''3.png'", [2]),
        ("'group offset' = key", []),
        ("  true", [0, 1, 2, 3]),
    ],
)
def test_the_rows_that_meet_it(condition: str, expected: list[int]) -> None:
    mask = matching_rows(ROWS, condition).to_pylist()
    assert [row for row, is_met in enumerate(mask) if is_met] == expected


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ("nope = 1", "nope"),
        ("group =", "syntax error"),
        ("", "--where is empty"),
        (" -- only a remark", "Parser"),
        ("true; drop table x", "Parser"),
        ("exists (select 1 from read_csv('/etc/passwd'))", "disabled"),
        ("exists (select 1 from '/etc/passwd')", "does not exist"),
        ("key in (select key from ROWS)", "does not exist"),
        ("count(*) > 1", "aggregates"),
        ("offset = 'abc'", "abc"),
        ("key", "BOOL"),
    ],
)
def test_what_is_no_condition_on_the_columns_is_told(condition: str, told: str) -> None:
    with pytest.raises(ConfigError, match="--where") as error:
        matching_rows(ROWS, condition)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_condition_on_no_rows() -> None:
    assert matching_rows(ROWS.slice(0, 0), "offset > 3").to_pylist() == []


def test_columns_of_types_that_duckdb_lacks() -> None:
    rows = pa.table(
        {
            "key": ["a", "b"],
            "half": pa.array([0.5, 1.5], pa.float32()).cast(pa.float16()),
            "large": pa.array([1, 2], pa.int64()).cast(pa.decimal256(60, 2)),
        }
    )
    assert matching_rows(rows, "key = 'b'").to_pylist() == [False, True]
    assert matching_rows(rows, "half > 1 and large = 2").to_pylist() == [False, True]


def test_names_that_differ_in_case_alone_are_not_guessed() -> None:
    rows = pa.table({"key": ["a"], "Key": ["b"], "path": ["c"]})
    assert matching_rows(rows, "path = 'c'").to_pylist() == [True]
    with pytest.raises(ConfigError, match="can't tell the columns key and Key apart"):
        matching_rows(rows, "Key = 'b'")
