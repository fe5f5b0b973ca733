from __future__ import annotations

from pathlib import Path

import pytest

from embedx.data.sources.patterns import expand_braces, find_files
from embedx.errors import ConfigError


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("{000..003}", ["000", "001", "002", "003"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{0..2}", ["0", "1", "2"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}-{0..1}.tar", ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]),
        ("x{,y}", ["x", "xy"]),
        ("{a}{..}{1..}", ["{a}{..}{1..}"]),
    ],
)
def test_braces_expand_as_in_a_shell(pattern: str, expected: list[str]) -> None:
    assert list(expand_braces(pattern)) == expected


def test_files_come_in_the_order_of_braces_and_of_names(tmp_path: Path) -> None:
    for name in ("a-1", "a-0", "b-0", "[x]", "{1..2}"):
        (tmp_path / name).touch()
    found = [Path(path).name for path in find_files(f"{tmp_path}/{{b,a}}-*")]
    assert found == ["b-0", "a-0", "a-1"]
    assert find_files(f"{tmp_path}/[x]") == [f"{tmp_path}/[x]"]
    assert find_files(f"{tmp_path}/{{1..2}}") == [f"{tmp_path}/{{1..2}}"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("c-*", "there is no such file"),
        ("a-{0..99999999999}", "there is no file .*/a-2; check"),
        ("a-{0,1,0}", "/a-0 is named twice"),
        ("{a-*,a-1}", "/a-1 is named twice"),
    ],
)
def test_a_file_that_is_not_there_or_there_twice_is_named(tmp_path: Path, pattern: str, message: str) -> None:
    for name in ("a-0", "a-1"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=message):
        find_files(f"{tmp_path}/{pattern}")
