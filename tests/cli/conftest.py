"""The command line, called in this process."""

from __future__ import annotations

import pytest

from tests.cli.calls import Embedx


@pytest.fixture
def embedx(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Embedx:
    """Calls the command line in this process, which has torch imported already."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    return Embedx(monkeypatch, capfd)


@pytest.fixture
def call(embedx: Embedx, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Embedx:
    """The same in one thread, where a line has 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")
    return embedx
