"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import os

# Before torch is imported: threads that spin while they wait would steal each other's cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Before a console is made: it keeps the width that it finds then, and xdist sets one.
os.environ.pop("COLUMNS", None)

# Before gcsfs is imported: it asks by gRPC, which the tests' server of Google's storage has not.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"

from collections.abc import Iterator
from pathlib import Path

import pytest
import skimage
import torch

import embedx.cli.output  # noqa: F401  (before a test sets COLUMNS: a console keeps the width that it is made with)
from tests.runs import SEED

LONGEST = {"test_walk.py", "test_manual.py", "test_readme.py", "test_extract.py", "test_app.py", "test_loaders.py"}


@pytest.hookimpl(optionalhook=True)  # where pytest-xdist is not installed, the tests run one by one
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than the cores, as many tests wait for processes; more of them would but take memory."""
    return min((os.cpu_count() or 1) + 1, 6)


def pytest_report_header() -> str:
    return f"seed of what is random: {SEED}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left with one while the others have nothing to do."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def photos() -> Path:
    """The folder of photographs that scikit-image brings along: astronaut.png, rocket.jpg and others."""
    return Path(skimage.__file__).parent / "data"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """While this lasts, torch computes in one thread: for tiny models more of them only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
