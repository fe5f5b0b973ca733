"""`embedx export` as a user types it: streams, exit codes, messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.calls import Embedx
from tests.vectors.exports import build


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("store") / "store")


def test_the_folder_s_path_is_on_stdout_and_talk_stays_on_stderr(call: Embedx, store: Path, tmp_path: Path) -> None:
    code, stdout, stderr = call("export", store, "--out", tmp_path / "out")
    assert (code, stdout) == (0, f"{tmp_path}/out\n") and "Traceback" not in stderr
    code, stdout, stderr = call("export", store, "-o", tmp_path / "quiet", "--quiet")
    assert (code, stdout, stderr) == (0, f"{tmp_path}/quiet\n", "")


def test_json_is_one_object_in_one_line(call: Embedx, store: Path, tmp_path: Path) -> None:
    arguments = ["--to", "npy", "--split", "val", "--columns", "class", "--columns", "target", "--dtype", "float16"]
    code, stdout, _ = call("export", store, "--out", tmp_path / "out", *arguments, "--json")
    result = json.loads(stdout)
    assert code == 0 and stdout.count("\n") == 1
    assert (result["rows"], result["splits"], result["dim"], result["dtype"]) == (20, {"val": 20}, 7, "float16")
    files = {name: (tmp_path / "out" / name).stat().st_size for name in ("embeddings.npy", "keys.parquet")}
    assert result["files"] == files and result["bytes"] == sum(files.values()) and result["out"] == f"{tmp_path}/out"


def test_settings_can_stand_in_a_file(call: Embedx, store: Path, tmp_path: Path) -> None:
    settings = f'to = "csv"\nsplit = ["val"]\nnormalize = true\nout = "{tmp_path}/out"\n'
    (tmp_path / "export.toml").write_text(settings)
    assert call("export", store, "--config", tmp_path / "export.toml").code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".embedx-export.json", "val.csv"]


def test_notices(call: Embedx, tmp_path: Path) -> None:
    import torch

    half = build(tmp_path / "half", finish=False)
    code, stdout, stderr = call("export", half, "--out", tmp_path / "a")
    assert (code, stdout) == (0, f"{tmp_path}/a\n")
    assert f"{half} is not complete: the rows committed so far are exported" in stderr
    other = build(tmp_path / "other", dtype=torch.bfloat16)
    stderr = call("export", other, "--out", tmp_path / "b").stderr
    assert "the store's vectors are bfloat16, and are exported as float32" in stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--out", "x", "--split", "vall"), "unknown split 'vall'"),
        (("--out", "x", "--to", "hdf5"), "hdf5"),
        (("--out", "x", "--columns", "clas"), "unknown column 'clas'; did you mean class?"),
        (("--out", "x", "--where", "clas = 1"), "--where clas = 1"),
        (("--out", "x", "--to", "csv", "--dtype", "float16", "--list", "variable"), "--list variable is for"),
        (("--out", "/dev/null/x"), "--out /dev/null/x"),
        ((), "--out"),
    ],
)
def test_what_can_not_be_done_is_one_message(
    call: Embedx,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = call("export", store, "--quiet", *options)
    assert (code, stdout) == (2, "") and told in stderr and "fault of embedx itself" not in stderr
    assert not any(tmp_path.iterdir())


def test_what_is_no_store_is_one_message(call: Embedx, tmp_path: Path) -> None:
    code, stdout, stderr = call("export", tmp_path, "--out", tmp_path / "out")
    assert (code, stdout) == (2, "") and "is not a store" in stderr and stderr.count("\n") == 1
