"""What is made of a store, by functions: their settings are the commands'."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import embedx
from embedx.errors import ConfigError, LeakError, NotAStoreError
from embedx.store.format.manifest import Manifest
from tests.store.builders import write_features

VERBS: dict[str, Callable[..., Any]] = {
    "duplicates": embedx.duplicates,
    "build_index": embedx.build_index,
    "report": embedx.report,
    "export": embedx.export,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    rows[30:33] = rows[:3]
    out = tmp_path_factory.mktemp("store") / "store"
    return write_features(out, {"train": (rows[:30], [0, 1] * 15), "val": (rows[30:], [0, 1] * 15)})


def called(verb: str, store: Any, folder: Path, /, **settings: Any) -> Any:
    out = {"report": {"out": folder / "report.html"}, "export": {"out": folder / "export"}}.get(verb, {})
    if verb == "build_index":
        settings.setdefault("out", folder / "index")
    return VERBS[verb](store, progress=False, **out, **settings)


@pytest.mark.parametrize("name", VERBS)
def test_a_store_or_its_path(name: str, store: Path, tmp_path: Path) -> None:
    for number, given in enumerate((store, str(store), embedx.open(store))):
        folder = tmp_path / str(number)
        folder.mkdir()
        result = called(name, given, folder, **({"map": "pca"} if name == "report" else {}))
        assert result.to_json()["rows"] == 60 if name != "build_index" else result.index.facts.rows == 60


def test_settings_are_those_of_the_commands_and_may_be_texts(store: Path, tmp_path: Path) -> None:
    found = embedx.duplicates(store, between=["train", "val"], threshold=1, progress=False)
    assert found.members == 3 and found.table["similarity"].to_pylist() == [1.0] * 6
    assert embedx.export(store, tmp_path / "npy", "npy", split="val", progress=False).rows == {"val": 30}


def test_leaks_are_an_error_with_the_result_where_that_is_wanted(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "duplicates.csv"
    with pytest.raises(LeakError, match="duplicates of 3 rows of train in val") as error:
        embedx.duplicates(store, fail_on_leak=True, out=out, progress=False)
    assert error.value.result.members == 3 and out.exists()
    assert embedx.duplicates(store, fail_on_leak=True, where="key = 'key-9'", progress=False).members == 0


@pytest.mark.parametrize("name", ["duplicates", "export"])
def test_a_store_that_is_not_complete_is_told_once(
    name: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = tmp_path / "half"
    shutil.copytree(store, half)
    begun = Manifest.read(store)
    Manifest(begun.recipe, begun.plan, begun.environment).write(half)
    settings: dict[str, Any] = {"out": tmp_path / "export"} if name == "export" else {}
    assert VERBS[name](half, **settings).to_json()["rows"] == 60
    assert capsys.readouterr().err.count("is not complete: the rows committed so far are") == 1


@pytest.mark.parametrize("name", VERBS)
def test_faults_of_settings_are_told(name: str, store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown setting 'treshold'"):
        called(name, store, tmp_path, treshold=0.9)
    with pytest.raises(ConfigError, match="name: 5 is not what it takes; give a text"):
        called(name, store, tmp_path, name=5)
    with pytest.raises(NotAStoreError):
        called(name, tmp_path, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_progress_is_shown_where_it_is_wanted(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embedx.report(store, tmp_path / "a.html", map="pca", progress=False)
    assert capsys.readouterr() == ("", "")
