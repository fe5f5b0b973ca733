"""The README's commands and programs, run as they stand there."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.docs.pages import PAGES, ROOT, Reader, Step, blocks, steps, without_rates

README = PAGES["README"].read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("step", steps("README"), ids=str)
def test_a_step_of_the_readme_does_what_it_shows(step: Step, readme: Reader) -> None:
    seen = readme.follow(step)
    if step.shown:
        assert without_rates(seen) == without_rates(step.shown)


def test_a_newcomer_reads_a_short_page() -> None:
    assert len(README.splitlines()) <= 150


def test_the_second_run_says_what_the_readme_says(readme: Reader) -> None:
    first = steps("README")[0]
    assert "up to date: 9 rows" in readme.again(first) and "`up to date: 9 rows`" in README


def test_what_is_installed_is_this_project() -> None:
    installed = re.findall(
        r"pip install \"?(\w+)(?:\[([\w,]+)\])?", "".join(page.read_text() for page in PAGES.values())
    )
    assert ("embedx", "") in installed
    for name, extras in installed:
        assert name == PROJECT["name"]
        assert set(extras.split(",")) - {""} <= PROJECT["optional-dependencies"].keys()


def test_every_value_of_the_tables_is_run_by_a_step() -> None:
    values = re.findall(r"^\| .* \| `(?!--)(.+)` \|$", README, re.MULTILINE)
    runs = [step.text for page in PAGES for step in steps(page)]
    assert len(values) == 11
    for value in values:
        assert any(re.search(rf"--(data|backbone) {re.escape(value)}(?= |$)", run) for run in runs), value


def test_make_knows_the_pages_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for name, page in PAGES.items():
        commands = "".join(text for _, text in blocks(name, "sh"))
        for target in {*re.findall(r"`make (\w+)", page.read_text()), *re.findall(r"^make (\w+)", commands, re.M)}:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), (name, target)


def test_all_commands_in_the_readme_are_tested() -> None:
    lines = [line for _, text in blocks("README", "sh") for line in text.splitlines()]
    ours = {step.text for step in steps("README")}
    assert all(line in ours or re.match(r"(pip install embedx|git clone|make \w+)\b", line) for line in lines)
