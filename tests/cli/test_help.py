"""`embedx help`: topics, pages, the pager, and the page for a browser."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from embedx.cli.help import DOCS, TOPICS
from tests.cli.calls import Embedx


def test_topics_are_listed_a_line_each(embedx: Embedx) -> None:
    ended = embedx("help")
    assert ended.code == 0 and len(ended.stdout.splitlines()) == len(TOPICS)
    for line, topic in zip(ended.stdout.splitlines(), TOPICS, strict=True):
        assert line.split()[0] == topic and len(line) <= 80
    assert "embedx help TOPIC" in ended.stderr


def test_a_pipe_gets_the_page_as_it_stands(embedx: Embedx) -> None:
    assert embedx("help", "store").stdout == (DOCS / "store.md").read_text()


def test_a_command_without_a_page_shows_its_options(embedx: Embedx) -> None:
    assert "--rejected" in embedx("help", "info").stdout


def test_an_unknown_topic_is_told_with_the_nearest_one(embedx: Embedx) -> None:
    ended = embedx("help", "sorces")
    assert (ended.code, ended.stdout) == (2, "")
    lists = "(`embedx help` lists the pages, `embedx --help` the commands)"
    assert ended.stderr == f"error: unknown topic 'sorces'; did you mean sources? {lists}\n"


class Page(HTMLParser):
    """What one HTML page has: its anchors, links, and whatever it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag not in ("meta", "br", "hr", "img"):
            self.open.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "a":
            self.links.append(values["href"])
        elif "src" in values or "href" in values or tag == "script":
            self.loaded.append(self.get_starttag_text() or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()


def test_one_page_for_a_browser_needs_nothing_else(embedx: Embedx, tmp_path: Path) -> None:
    ended = embedx("help", "--web", tmp_path / "manual.html")
    assert (ended.code, ended.stdout) == (0, f"{tmp_path / 'manual.html'}\n")
    text = (tmp_path / "manual.html").read_text()
    page = Page(text)
    assert page.open == [] and page.loaded == [] and "url(" not in text and "@import" not in text
    assert len(page.ids) == len(set(page.ids)) and set(TOPICS) <= set(page.ids)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert all(link.startswith(("#", "https://")) for link in page.links)
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    assert text.count("<pre>") == sum((DOCS / f"{topic}.md").read_text().count("\n```") // 2 for topic in TOPICS)


def test_a_topic_beside_web_is_refused(embedx: Embedx, tmp_path: Path) -> None:
    ended = embedx("help", "store", "--web", tmp_path / "manual.html")
    assert (ended.code, ended.stderr) == (2, "error: --web writes all pages to one file; leave out store\n")
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="for Linux")
def test_a_full_disk_under_a_web_page_is_told(embedx: Embedx) -> None:
    ended = embedx("help", "--web", "/dev/full")
    advice = "once that is mended, run it again"
    assert (ended.code, ended.stderr) == (1, f"error: --web /dev/full: No space left on device; {advice}\n")


def test_a_web_page_that_can_t_be_written_is_told(embedx: Embedx, tmp_path: Path) -> None:
    for file, cause in (("absent/manual.html", "No such file or directory"), ("", "Is a directory")):
        ended = embedx("help", "--web", tmp_path / file)
        advice = "give a file in a folder that is there and can be written to"
        assert ended.code == 2 and ended.stderr == f"error: --web {tmp_path / file}: {cause}; {advice}\n"


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What a terminal of 80 columns shows, escapes included."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "embedx", *arguments]
    env = os.environ | {"COLUMNS": "80", "LINES": "24", "TERM": "xterm"} | environment
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait() == 0
    return shown.decode()


@pytest.mark.parametrize("pager", ["cat", "sed s/^/page:/"])
def test_a_terminal_gets_the_page_rendered_through_the_pager(pager: str) -> None:
    shown = on_a_terminal("help", "checkpoints", PAGER=pager)
    lines = [re.sub(r"\x1b\[[\d;]*m|\x1b\]8;.*?\x1b\\", "", line).removeprefix("page:") for line in shown.split("\r\n")]
    assert all(len(line) <= 80 for line in lines) and "\x1b[1m" in shown
    assert not any(line.startswith(("#", "- ", "```")) for line in lines)
    assert ("page:" in shown) == pager.startswith("sed")


def test_a_pager_that_is_not_there_is_told_and_not_used() -> None:
    shown = on_a_terminal("help", "checkpoints", MANPAGER="no-such-pager -R", PAGER="cat")
    assert shown.startswith("MANPAGER is no-such-pager -R, and there is no such program: it is not used\r\n")
    assert "Checkpoints" in shown


def test_help_imports_no_torch() -> None:
    check = "import sys; sys.argv = ['embedx', 'help', 'speed']; from embedx.cli.app import run; "
    check += "code = run(); sys.exit(code or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, stdout=subprocess.DEVNULL)
