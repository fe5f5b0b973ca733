"""The README and the manual's pages as steps: commands and programs, each run as it stands there."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from embedx.cli.app import run
from embedx.cli.help import DOCS, TOPICS

ROOT = Path(__file__).parent.parent.parent
PAGES = {"README": ROOT / "README.md"} | {topic: DOCS / f"{topic}.md" for topic in TOPICS}


class Step(NamedTuple):
    """A command, a program, or a file that the page shows."""

    page: str
    language: str
    text: str
    shown: str
    """The output that the page shows; empty if it shows none."""

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.text.split())[:70]}"


def blocks(page: str, language: str = r"\w+") -> list[tuple[str, str]]:
    """The fenced blocks of a page: their languages and texts."""
    return re.findall(rf"^```({language})\n(.*?)^```", PAGES[page].read_text(), re.MULTILINE | re.DOTALL)


def steps(page: str) -> list[Step]:
    """A page's commands of embedx and its programs, in order."""
    found = []
    for language, text in blocks(page, "sh|console|python"):
        if language == "python":
            found.append(Step(page, language, text, ""))
        elif language == "sh":
            lines = text.replace("\\\n", " ").splitlines()
            found += [Step(page, language, line, "") for line in lines if "embedx " in line.partition("#")[0]]
        else:
            parts = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
            found += [Step(page, language, *part.split("\n", 1)) for part in parts]
    return [step for step in found if not re.match(r"(git|make|pip) ", step.text)]


class Reader:
    """Somebody who takes a page's steps in a folder: later ones take up what earlier ones wrote."""

    def __init__(self, page: str, folder: Path) -> None:
        self.folder = folder
        self._steps = steps(page)
        self._seen: list[str | Exception] = []

    def follow(self, step: Step) -> str:
        """Takes the steps up to this one that have not been taken, and returns what is seen of this one."""
        number = self._steps.index(step)
        with contextlib.chdir(self.folder):
            while len(self._seen) <= number:
                try:
                    self._seen.append(_take(self._steps[len(self._seen)]))
                except Exception as error:  # noqa: BLE001  (it fails the test of that step alone)
                    self._seen.append(error)
        if isinstance(seen := self._seen[number], Exception):
            raise seen
        return seen

    def again(self, step: Step) -> str:
        """Takes a step once more, and returns what is seen of it."""
        self.follow(step)
        with contextlib.chdir(self.folder):
            return _take(step)


def without_rates(text: str) -> list[str]:
    """With N for all that differs from one machine to the next, and without what only a log or a slow machine has."""
    lines = [re.sub(r"^\d{4}-\d\d-\d\d [\d:]{8} ", "", line.rstrip()) for line in text.splitlines()]
    return [
        re.sub(r"[\d.]+ (s|images/s|thread|worker)s?\b", r"N \1", line).replace("on cuda", "on cpu, N thread")
        for line in lines
        if not re.search(r"(: (begins|ends with exit code 0|\d+ s so far)|, [\d.]+ images/s)$", line)
    ]


def _take(step: Step) -> str:
    if step.language != "python":
        return type_line(step.text, as_shown=step.language == "console")
    if named := re.match(r"# (\w+\.py)\n", step.text):
        Path(named[1]).write_text(step.text)
        return step.text
    with _both_streams() as seen:
        exec(step.text, {"__name__": "program"})
    return seen[0]


def type_line(line: str, *, as_shown: bool) -> str:
    """Runs a command in this process, which has torch imported; a pipe's last one gets what the others print."""
    *others, last = line.split(" | ")
    program, *arguments = shlex.split(last, comments=True)
    assert program == "embedx", line
    if arguments[0] == "extract" and not as_shown:
        arguments += ["--workers", "0", "--batch-size", "2"]  # soonest done
    piped = subprocess.run(" | ".join(others), shell=True, check=True, capture_output=True).stdout
    with pytest.MonkeyPatch.context() as patch, _both_streams() as seen:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped)))
        patch.setattr(sys, "argv", [program, *arguments])
        patch.setattr(sys, "path", list(sys.path))
        patch.delitem(sys.modules, "mine", raising=False)  # that of another page
        patch.setenv("COLUMNS", "110")
        code = run()
    assert code == 0, f"{line}\n{seen[0]}"
    return seen[0]


@contextlib.contextmanager
def _both_streams() -> Iterator[list[str]]:
    """Collects what is written to both streams, in its order; it is in the list once this has ended."""
    seen: list[str] = []
    with tempfile.TemporaryFile("w+", buffering=1) as file, pytest.MonkeyPatch.context() as patch:
        saved = [os.dup(1), os.dup(2)]
        patch.setattr(sys, "stdout", file)
        patch.setattr(sys, "stderr", file)
        try:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
            yield seen
        finally:
            file.flush()
            for stream, descriptor in enumerate(saved, 1):
                os.dup2(descriptor, stream)
                os.close(descriptor)
            file.seek(0)
            seen.append(file.read())
