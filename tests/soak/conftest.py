"""Fixtures of the campaigns: a process that forks runs, and the command that they repeat."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.soak.runs import Launcher
from tests.soak.scenarios import Stage


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path_factory.mktemp("launcher") / "runs")
    yield launcher
    launcher.close()


@pytest.fixture
def stage(tmp_path: Path, scenario: str, launcher: Launcher) -> Stage:
    return Stage(tmp_path / "stage", scenario, launcher)
