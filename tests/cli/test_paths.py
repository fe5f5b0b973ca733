"""Every option and argument that is a path, of every command."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedx.cli.app import app
from embedx.config import ExtractConfig
from embedx.paths import BucketPath, StorePath
from embedx.vectors.exporting.export_config import ExportConfig
from embedx.vectors.indexing.ann_config import IndexConfig
from embedx.vectors.pairs.duplicates_config import DuplicatesConfig
from embedx.vectors.probing.probe_config import ProbeConfig
from embedx.vectors.reporting.report_config import ReportConfig
from embedx.vectors.searching.search_config import SearchConfig
from tests.cli.calls import COMMANDS
from tests.runs import run

SETTINGS: dict[str, type[Any]] = {
    "extract": ExtractConfig,
    "probe": ProbeConfig,
    "search": SearchConfig,
    "index": IndexConfig,
    "duplicates": DuplicatesConfig,
    "report": ReportConfig,
    "export": ExportConfig,
}

STORES = ("STORE", "A", "B")
"""The names of parameters that are the place of a store, which may be in a bucket."""


def path_parameters() -> Iterator[tuple[str, str]]:
    for command, parsed in COMMANDS.items():
        for parameter in parsed.params:
            if parameter.metavar in ("PATH", "FILE", *STORES):
                yield command, parameter.name


def test_no_parameter_is_a_path_unless_it_is_expanded() -> None:
    """That is, none has Click's own type of paths, which knows neither `~` nor URLs."""
    assert len(list(path_parameters())) >= 10
    unexpanded = [
        (command.name, parameter.name)
        for command in app.registered_commands
        if command.callback is not None
        for parameter in inspect.signature(command.callback, eval_str=True).parameters.values()
        if "Path" in str(parameter.annotation) and not getattr(parameter.annotation.__metadata__[0], "parser", None)
    ]
    assert unexpanded == []


@pytest.mark.parametrize(("command", "parameter"), list(path_parameters()))
def test_a_path_is_expanded_and_a_url_is_taken_for_stores_alone(
    command: str, parameter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x").touch()
    (tmp_path / "x y").touch()
    assert _parsed(command, parameter, "~/x") == tmp_path / "x"
    assert _parsed(command, parameter, f"file://{tmp_path}/x%20y") == tmp_path / "x y"
    (metavar,) = (each.metavar for each in COMMANDS[command].params if each.name == parameter)
    if metavar in STORES:
        assert _parsed(command, parameter, "s3://lake/x") == BucketPath("s3://lake/x")
        return
    with pytest.raises(Exception, match="s3://lake/x is a URL, and can't be used here; give a path on this machine"):
        _parsed(command, parameter, "s3://lake/x")


def _parsed(command: str, parameter: str, value: str) -> StorePath:
    """The value as the command gets it; the command itself is not run."""
    parsed = COMMANDS[command]
    arguments = []
    for each in parsed.params:
        given = value if each.name == parameter else "1"
        if each.name == parameter or each.required:
            arguments += [given] if each.param_type_name == "argument" else [each.opts[0], given]
    values = parsed.make_context(command, arguments).params
    found = values[parameter]
    if (settings := SETTINGS.get(command)) and parameter in (names := settings.__dataclass_fields__):
        found = getattr(settings(**{name: values[name] for name in names if name in values}), parameter)
    (found,) = found if isinstance(found, list | tuple) else [found]
    assert isinstance(found, Path | BucketPath)
    return found


def test_no_folder_is_made_for_a_home_or_a_url(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.ones((2, 3), np.float32))
    (tmp_path / "run.toml").write_text('backbone = "none"\ndata = "train=$HOME/in.npy"\nout = "~/store"\n')
    work, home = tmp_path / "work", {"HOME": str(tmp_path)}
    work.mkdir()
    done = run("extract", "--config", "~/run.toml", env=home, cwd=work)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/store/manifest.json\n"), done.stderr
    refused = run("extract", "--config", "~/run.toml", "--out", "s3://", env=home, cwd=work)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--out s3:// names no place in a bucket" in refused.stderr
    refused = run("extract", "--config", "~/run.toml", "--out", "s3://lake/store", env=home, cwd=work)
    assert refused.returncode in (1, 2) and "--out s3://lake/store: " in refused.stderr
    assert list(work.iterdir()) == []
