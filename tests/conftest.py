"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

from pathlib import Path

import pytest
import skimage


@pytest.fixture(scope="session")
def photos() -> Path:
    """The folder of photographs that scikit-image brings along: astronaut.png, rocket.jpg and others."""
    return Path(skimage.__file__).parent / "data"
