"""The command line, called in the tests' own process, which has torch imported already."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from embedx.cli.app import app, run

PROGRAM = typer.main.get_group(app)
COMMANDS: Mapping[str, Any] = PROGRAM.commands
"""The commands by name: objects of Click's, of which later versions of typer bring along their own."""


class Ended(NamedTuple):
    """What one call of `embedx` printed, and its exit code."""

    code: int
    stdout: str
    stderr: str


class Embedx:
    """Calls `embedx` with these arguments."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capfd = monkeypatch, capfd

    def __call__(self, *arguments: str | Path) -> Ended:
        self.monkeypatch.setattr(sys, "argv", ["embedx", *map(str, arguments)])
        return Ended(run(), *self.capfd.readouterr())
