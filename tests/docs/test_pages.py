"""Rules about the pages themselves: they fit a terminal, their links lead somewhere, and their flags are parsed."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

import embedx
from embedx.cli.help import DOCS, TOPICS, rendered, summary
from tests.cli.calls import COMMANDS
from tests.cli.test_advice import OPTIONS, faults_of
from tests.docs.pages import PAGES, ROOT, blocks

BASE = "https://github.com/embedx/embedx/blob/main/"
WIDTH = 80


@pytest.mark.parametrize("page", TOPICS)
def test_a_page_s_text_and_code_are_at_most_80_columns_wide(page: str) -> None:
    """But for tables and lines that can't be broken, such as those of a crontab and a picture's address."""
    unbroken = "".join(text for _, text in blocks(page, "crontab"))
    lines = re.sub(r"^\"https://\S+", "", PAGES[page].read_text(), flags=re.MULTILINE).splitlines()
    assert [line for line in lines if len(line) > WIDTH and line[0] != "|" and line not in unbroken] == []
    code = "".join(text for language, text in blocks(page) if language != "crontab")
    assert [line for line in code.splitlines() if len(line) > WIDTH - 2] == []  # a terminal shows it with margins


@pytest.mark.parametrize("topic", TOPICS)
def test_a_page_fits_a_terminal_of_80_columns(topic: str) -> None:
    terminal = Console(file=io.StringIO(), width=WIDTH, force_terminal=True, color_system=None)
    terminal.print(rendered(PAGES[topic].read_text()))
    lines = terminal.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines and all(len(line) <= WIDTH for line in lines)
    assert not any(re.search(r"\]\(|```|\*\*", line) for line in lines)  # Markdown that was not understood


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for text, target in re.findall(r"\[([^\]]*)\]\(([^)]+)\)", PAGES[page].read_text()):
        if target.startswith(BASE):
            assert (ROOT / target.removeprefix(BASE)).is_file(), target
        elif not target.startswith("https://"):
            assert target == f"{text}.md" and text in TOPICS, target  # the terminal shows `embedx help TEXT`


def test_every_page_is_a_topic_and_linked_from_the_readme() -> None:
    assert sorted(path.stem for path in DOCS.glob("*.md")) == sorted(TOPICS)
    readme = PAGES["README"].read_text()
    for topic in TOPICS:
        assert f"({BASE}embedx/docs/{topic}.md)" in readme, topic
        assert len(summary(PAGES[topic].read_text())) <= WIDTH - 18


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_on_a_page_is_one_of_its_command(page: str) -> None:
    text = PAGES[page].read_text().replace("\\\n", " ")
    theirs = r"--config embedx.toml|`?(pip|find|systemctl|hf) [^`\n|]*|`--max-restarts`|#SBATCH .*"
    theirs += r"|(embedding-atlas|tensorboard) [^`]*"
    ours = re.sub(rf"{theirs}|(torchrun|srun) [^`]*?(?=embedx |`)", "", text)
    assert list(faults_of(ours)) == []


def test_every_command_and_flag_is_told_in_help_or_on_a_page() -> None:
    text = "".join(page.read_text() for page in PAGES.values())
    for name, command in COMMANDS.items():
        assert re.search(rf"\b{name}\b", text), name
        for option in command.params:
            assert getattr(option, "help", None) or any(flag in text for flag in option.opts), (name, option.opts)
    assert "--data" in OPTIONS["extract"]


def test_every_room_is_named() -> None:
    design = PAGES["design"].read_text()
    for room in Path(embedx.__file__).parent.iterdir():
        if room.is_dir() and room.name != "__pycache__":
            assert f"`embedx/{room.name}/`" in design, room.name
