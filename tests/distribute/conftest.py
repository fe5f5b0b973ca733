from __future__ import annotations

import pytest

from embedx.store.format.layout import index_files
from tests.distribute.members import EXTRACT, UNITS, contents
from tests.folders import draw_folder
from tests.runs import run


@pytest.fixture(scope="session")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two splits, and units of four rows: of 1024 float32 numbers and an index each."""
    images = draw_folder(tmp_path_factory.mktemp("images"), {"train": 12, "val": 6})
    return [*EXTRACT, "--data", str(images), "-b", "4", "--shard-size", "16416"]


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory, arguments: list[str]) -> dict[str, str]:
    out = tmp_path_factory.mktemp("expected") / "store"
    done = run(*arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    assert len(index_files(out)) == UNITS
    return contents(out)
