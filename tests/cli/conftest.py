"""The command line, called in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from embedx.cli.app import run


class Ended:
    """What one call of `embedx` printed, and its exit code."""

    def __init__(self, code: int, stdout: str, stderr: str) -> None:
        self.code, self.stdout, self.stderr = code, stdout, stderr


@pytest.fixture
def embedx(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Calls the command line in this process, which has torch imported already."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")

    def call(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["embedx", *map(str, arguments)])
        code = run()
        stdout, stderr = capfd.readouterr()
        return Ended(code, stdout, stderr)

    return call
