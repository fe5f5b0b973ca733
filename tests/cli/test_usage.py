"""The page of `--help` of every command, at 80 columns, as it is stored in tests/cli/help/, and its examples.

    EMBEDX_RENEW_HELP=1 python -m pytest -n0 tests/cli/test_usage.py

renews the stored pages; look at their differences before you commit them.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from embedx import sample
from tests.cli.calls import COMMANDS, Embedx

PAGES = Path(__file__).parent / "help"
RENEW = "EMBEDX_RENEW_HELP=1 python -m pytest -n0 tests/cli/test_usage.py"


def page(embedx: Embedx, monkeypatch: pytest.MonkeyPatch, *arguments: str, columns: int = 80) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    done = embedx(*arguments, "--help")
    assert (done.code, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_the_page_of_every_command_is_the_stored_one(
    embedx: Embedx, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    shown = page(embedx, monkeypatch, *command.split())
    file = PAGES / f"{command or 'embedx'}.txt"
    if "EMBEDX_RENEW_HELP" in os.environ:
        file.write_text(shown)
    assert file.is_file() and shown == file.read_text(), f"the page has changed; look at it, and renew it by {RENEW}"
    assert max(map(len, shown.splitlines())) <= 80


def test_there_is_no_page_of_a_command_that_is_gone() -> None:
    assert {file.stem for file in PAGES.iterdir()} == {"embedx", *COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_word_of_a_help_text_is_broken(embedx: Embedx, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    words = page(embedx, monkeypatch, command).split()
    for parameter in COMMANDS[command].params:
        text = (parameter.help or "").split()
        assert any(words[start : start + len(text)] == text for start in range(len(words))), parameter.name


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_its_value_is(command: str) -> None:
    for parameter in COMMANDS[command].params:
        assert parameter.help, parameter.name
        if parameter.param_type_name == "argument" or not parameter.is_flag:
            assert parameter.metavar, parameter.name


def test_wide_and_narrow_terminals(embedx: Embedx, monkeypatch: pytest.MonkeyPatch) -> None:
    assert page(embedx, monkeypatch, "extract", columns=200) == (PAGES / "extract.txt").read_text()
    narrow = page(embedx, monkeypatch, "info", columns=60)
    options = narrow[: narrow.index("Examples")]
    assert max(map(len, options.splitlines())) <= 60


def test_the_panels_stand_in_the_design_s_order(embedx: Embedx, monkeypatch: pytest.MonkeyPatch) -> None:
    titles = re.findall(r"^[A-Z][a-z ]+$", page(embedx, monkeypatch, "extract"), re.MULTILINE)
    rooms = ["Inputs", "Backbone", "Preprocessing", "Output", "Machine", "Running again"]
    assert titles == ["Arguments", *rooms, "Options", "Examples"]


def test_without_a_command_the_page_is_printed_and_the_code_is_that_of_usage(embedx: Embedx) -> None:
    done = embedx()
    assert (done.code, done.stderr) == (2, "") and done.stdout == (PAGES / "embedx.txt").read_text()


def test_version(embedx: Embedx) -> None:
    done = embedx("--version")
    assert (done.code, done.stderr) == (0, "") and re.fullmatch(r"embedx \d+\.\d+\S*\n", done.stdout)


def examples(command: str) -> list[list[str]]:
    """The commands of a page's examples, as a shell would read them."""
    lines = [line for line in COMMANDS[command].epilog.splitlines() if not line.startswith("#")]
    return [shlex.split(line) for line in "\n".join(lines).replace("\\\n", "").splitlines()]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_two_or_three_examples_which_it_parses(command: str) -> None:
    assert 2 <= len(examples(command)) <= 3
    for program, name, *arguments in examples(command):
        assert (program, name) == ("embedx", command)
        COMMANDS[command].make_context(name, arguments)


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which `photos` has two images of each class and split, and in which the examples run."""
    for folder in sample.IMAGES.glob("*/*"):
        target = tmp_path / "photos" / folder.relative_to(sample.IMAGES)
        target.mkdir(parents=True)
        for image in sorted(folder.iterdir())[:2]:
            shutil.copy(image, target)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.soak
def test_every_example_runs(embedx: Embedx, photographs: Path) -> None:
    """As it stands, but for the backbone: the sample's needs no download."""

    def run(command: str, *numbers: int) -> None:
        for number in numbers or range(len(examples(command))):
            words = examples(command)[number][1:]
            if "--backbone" in words:
                words[words.index("--backbone") + 1] = sample.BACKBONE
                words += ["--weights", "sample", "-j", "0"]
            done = embedx(*words)
            assert done.code == 0, (words, done.stderr)

    run("extract", 0, 2)
    run("info")
    run("verify")
    run("repair")
    for name in ("before", "after"):
        shutil.copytree("store", name)
    run("compare")
    shutil.rmtree("store")
    run("extract", 1)
    run("probe")
    assert (photographs / "confusion.png").is_file()
    run("help")
    run("backbones")
    run("layers")
