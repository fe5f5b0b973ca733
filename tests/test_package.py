"""What a user installs: the version, the platforms, and what the distributions hold."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import embedx

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_the_distribution_s() -> None:
    assert embedx.__version__ == PROJECT["version"]


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("import embedx.__main__ as entry; entry.main()", 2), ("from embedx import Store", 1), ("import embedx", 0)],
)
def test_windows_is_told_of_wsl(code: str, exit_code: int) -> None:
    """Without the modules that Windows lacks, and by the name of its platform."""
    lacks = "import sys; sys.platform = 'win32'; sys.modules.update(dict.fromkeys(['fcntl', 'resource', 'termios']))"
    ended = subprocess.run([sys.executable, "-c", f"{lacks}; {code}"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (exit_code, "")
    assert ("install and run it in WSL, the Windows Subsystem for Linux\n" in ended.stderr) == (exit_code != 0)
