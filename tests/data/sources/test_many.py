"""Thousands of sources: the work grows with their number, not with its square."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from embedx.data.plan import build_plan
from embedx.data.sources import parse_data
from embedx.errors import ConfigError


def calls_of(specs: list[str]) -> int:
    """The number of calls, of Python and of C, in listing sources."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        build_plan(parse_data(specs), None)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("spec", ["s{}={}", "{}={}/{}.jpg", "all={1}", "{1}/{0}.jpg"])
def test_listing_many_sources_takes_work_in_proportion(tmp_path: Path, spec: str) -> None:
    for number in range(320):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / f"{number}.jpg").touch()
    specs = [spec.format(number, tmp_path / str(number), number) for number in range(320)]
    calls_of(specs[:2])  # what is done once
    few, many = calls_of(specs[:80]), calls_of(specs)
    assert many < 4.4 * few


def test_of_thousands_of_missing_sources_the_first_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_data([f"s{number}={tmp_path}/gone-{number}" for number in range(3000)])
    assert len(caught.value.faults) == 21 and caught.value.faults[-1].startswith("and perhaps more")
