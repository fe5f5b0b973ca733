"""`embedx compare` and `embedx verify --recompute` as a user types them: streams, exit codes, messages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from embedx import ExtractConfig, sample
from embedx.run.extract import extract
from tests.cli.calls import Embedx
from tests.store.builders import build_store


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four images, and their embeddings in single and half precision."""
    folder = tmp_path_factory.mktemp("stores")
    (folder / "images").mkdir()
    for image in sorted((sample.IMAGES / "val" / "ring").iterdir())[:4]:
        shutil.copy(image, folder / "images")
    for name, dtype in (("single", "float32"), ("half", "float16")):
        settings: dict[str, Any] = {
            "dtype": dtype,
            "data": (str(folder / "images"),),
            "weights": "sample",
            "batch_size": 4,
            "workers": 0,
        }
        extract(ExtractConfig(backbone=sample.BACKBONE, out=folder / name, **settings))
    return folder


def test_drift_is_told_as_a_table_or_as_json(call: Embedx, stores: Path) -> None:
    code, stdout, stderr = call("compare", stores / "single", stores / "half")
    assert (code, stderr) == (0, "")
    assert "recipe.dtype: float32 → float16" in stdout and "farthest apart of embeddings" in stdout
    assert stdout.count("│ all") == 6 and "embeddings │ all   │ 4" in stdout  # overlap, drift, and four rows
    code, stdout, stderr = call("compare", stores / "single", stores / "half", "--json")
    assert (code, stderr) == (0, "")
    drift = json.loads(stdout)["drift"]["embeddings"]
    assert drift["rows"] == 4 and 0 < drift["median"] <= drift["worst"] < 1e-6


def test_too_much_drift_is_one_message_and_exit_code_1(call: Embedx, stores: Path, tmp_path: Path) -> None:
    code, stdout, stderr = call("compare", stores / "single", stores / "half", "--max-drift", "1e-9")
    assert code == 1 and "embeddings" in stdout
    assert stderr.count("\n") == 1 and "in split 'all' has drifted by" in stderr and "--max-drift is 1e-09" in stderr
    assert call("compare", stores / "single", stores / "half", "--max-drift", "1e-6")[0] == 0
    assert call("compare", stores / "half", stores / "half", "--max-drift", "0")[0] == 0
    for limit in ("nan", "-1"):
        code, stdout, stderr = call("compare", stores / "single", stores / "half", f"--max-drift={limit}")
        assert (code, stdout) == (2, "") and f"--max-drift is {limit}; give a number from 0" in stderr


def test_what_can_not_be_compared_is_one_message(call: Embedx, stores: Path, tmp_path: Path) -> None:
    assert call("compare", stores / "single", tmp_path)[0] == 2
    code, stdout, stderr = call("compare", stores / "single", build_store(tmp_path / "other"))
    assert (code, stdout) == (2, "") and stderr.startswith("error: no row of ") and stderr.count("\n") == 1


def test_recomputed_rows_are_told_beside_the_usual_checks(call: Embedx, stores: Path) -> None:
    code, stdout, stderr = call("verify", stores / "half", "--recompute", "3", "--seed", "7")
    assert (code, stdout) == (0, "")
    assert "rows to recompute: 3, chosen by --seed 7, on cpu" in stderr
    assert "3 rows recomputed: largest difference 0 (allowed 0.002)" in stderr and "half is whole" in stderr
    report = json.loads(call("verify", stores / "single", "--recompute", "9", "--tolerance", "0", "--json")[1])
    assert report["ok"] and report["recomputed"]["rows"] == 4 and report["recomputed"]["largest_difference"] == 0


def test_inputs_that_are_gone_are_lines_on_stdout_and_exit_code_1(call: Embedx, stores: Path, tmp_path: Path) -> None:
    gone = sorted((stores / "images").iterdir())[2]
    gone.rename(tmp_path / gone.name)
    try:
        code, stdout, stderr = call("verify", stores / "single", "--recompute", "9")
        report = json.loads(call("verify", stores / "single", "--recompute", "9", "--json")[1])
    finally:
        (tmp_path / gone.name).rename(gone)
    assert code == 1 and stdout.count("\n") == 1 and f"key '{gone.name}': its input can't be read any more" in stdout
    assert "1 row can't be judged, as the inputs are gone or have changed since" in stderr
    assert not report["ok"] and report["faults"] == [] and len(report["recomputed"]["lost_inputs"]) == 1


def test_a_damaged_store_is_not_recomputed(call: Embedx, stores: Path, tmp_path: Path) -> None:
    shutil.copytree(stores / "single", tmp_path / "store")
    next((tmp_path / "store" / "all").iterdir()).unlink()
    code, stdout, stderr = call("verify", tmp_path / "store", "--recompute", "4")
    assert code == 1 and "missing" in stdout and "recompute" not in stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--recompute", "0"), "--recompute"),
        (("--recompute", "-3"), "--recompute"),
        (("--seed", "3"), "give --recompute N too"),
        (("--recompute", "3", "--device", "tpu"), "none of auto, cpu"),
        (("--recompute", "3", "--tolerance", "nan"), "--tolerance is nan"),
    ],
)
def test_nonsense_is_refused(call: Embedx, stores: Path, options: tuple[str, ...], told: str) -> None:
    code, stdout, stderr = call("verify", stores / "single", *options)
    assert (code, stdout) == (2, "") and told in stderr
