"""`embedx index` and `embedx search --approximate` as a user types them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import embedx
from tests.cli.calls import Embedx
from tests.store.builders import write_features

GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(40, 16, generator=GENERATOR).repeat(50, 1) + 0.3 * torch.randn(2000, 16, generator=GENERATOR)
ENVIRONMENT = {**os.environ, "COLUMNS": "100"}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {"train": (ROWS[:1900], [0] * 1900), "val": (ROWS[1900:], [1] * 100)}
    return write_features(tmp_path_factory.mktemp("stores") / "store", splits, rows_per_unit=500)


@pytest.fixture
def store(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "store")


def files(store: Path) -> list[str]:
    return sorted(os.listdir(store / "@faiss")) if (store / "@faiss").exists() else []


def test_an_index_is_built_once_and_a_search_tells_its_recall(call: Embedx, store: Path) -> None:
    code, stdout, stderr = call("index", store, "--factory", "IVF40,Flat", "--threads", "1")
    assert (code, stderr) == (0, "") and "factory    IVF40,Flat, nprobe " in stdout and "rows       2,000" in stdout
    code, stdout, stderr = call("index", store, "--factory", "IVF40,Flat", "--json")
    facts = json.loads(stdout)
    assert code == 0 and stdout.count("\n") == 1 and "embeddings-" in stderr and "up to date" in stderr
    assert (
        facts["built"] is False and facts["recall"] >= 0.95 and facts["path"] == str(store / "@faiss" / facts["file"])
    )
    query = ("search", store, "--row", "val:key-7", "-k", "3", "--json")
    code, stdout, stderr = call(*query, "--approximate")
    assert code == 0 and f"approximate: recall@10 is {facts['recall']:.4f} (IVF40,Flat)" in stderr
    assert [json.loads(line)["key"] for line in stdout.splitlines()]
    assert call(*query, "--approximate", "--quiet").stderr == ""
    assert call("verify", store).code == 0 and call("info", store).code == 0 and call("compare", store, store).code == 0


def test_settings_can_stand_in_a_file_and_all_faults_are_told(call: Embedx, store: Path, tmp_path: Path) -> None:
    (tmp_path / "index.toml").write_text('factory = "Flat"\nsplit = ["val"]\n')
    code, stdout, _ = call("index", store, "--config", tmp_path / "index.toml", "--out", tmp_path / "other")
    assert code == 0 and "splits     val" in stdout and files(store) == []
    code, stdout, _ = call(
        "search",
        store,
        "--row",
        "val:key-7",
        "--split",
        "val",
        "--approximate",
        "--index",
        tmp_path / "other",
        "--json",
    )
    assert code == 0 and {json.loads(line)["split"] for line in stdout.splitlines()} == {"val"}
    code, stdout, stderr = call("index", store, "--recall", "2", "--seed", "-1")
    assert (code, stdout) == (2, "") and "--recall is 2" in stderr and "--seed is -1" in stderr


def test_few_rows_are_told_to_need_none(call: Embedx, store: Path) -> None:
    code, stdout, stderr = call("index", store)
    assert code == 0 and "factory    Flat" in stdout and "exact search is as quick" in stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--factory", "nonsense"], "--factory nonsense: faiss can't make such an index of vectors of 16 numbers"),
        (["--factory", "IVF5000,Flat"], "faiss can't train such an index with 2000 vectors"),
        (["--split", "vall"], "unknown split 'vall'"),
        (["--name", "layer9"], "unknown tensor 'layer9'"),
        (["--device", "gpu"], "gpu"),
    ],
)
def test_what_can_t_be_built_is_told_in_one_message(call: Embedx, store: Path, options: list[str], told: str) -> None:
    code, stdout, stderr = call("index", store, *options)
    assert (code, stdout) == (2, "") and told in " ".join(stderr.split()) and files(store) == []
    assert stderr.count("error:") == 1


def test_an_index_is_refused_once_the_store_has_changed(call: Embedx, tmp_path: Path) -> None:
    """By a further split, and by other inputs; it goes along with the store, and is whole with it."""
    for name, rows in (("a", ROWS[:500]), ("b", ROWS[500:600]), ("c", ROWS[600:1100])):
        np.save(tmp_path / f"{name}.npy", rows.numpy())
    store = tmp_path / "store"

    def extract(*options: str) -> None:
        assert call("extract", "--backbone", "none", "--out", store, "--workers", "0", *options).code == 0

    extract("--data", f"train={tmp_path}/a.npy")
    first = embedx.open(store).index()["key"][3].as_py()
    query = ("search", store, "--row", f"train:{first}", "--approximate", "--json")
    code, _, stderr = call(*query)
    assert code == 2 and f"`embedx index {store}` builds one" in " ".join(stderr.split())
    assert call("index", store).code == 0 and call(*query).code == 0
    for options in (
        ["--data", f"train={tmp_path}/a.npy", "--data", f"val={tmp_path}/b.npy", "--update"],
        ["--data", f"train={tmp_path}/a.npy", "--data", f"val={tmp_path}/c.npy", "--overwrite"],
    ):
        extract(*options)
        assert len(files(store)) == 2 and call("verify", store).code == 0
        code, stdout, stderr = call(*query)
        assert (code, stdout) == (2, "")
        assert f"the store has changed since its index was built; run `embedx index {store}` again" in " ".join(
            stderr.split()
        )
        assert call("index", store).code == 0 and call(*query).code == 0 and len(files(store)) == 2


def test_a_faiss_that_is_not_installed_is_told(store: Path, tmp_path: Path) -> None:
    """Where it can't be imported, as in a process of its own with a module of that name that fails."""
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "faiss.py").write_text("raise ModuleNotFoundError(\"No module named 'faiss'\")")
    path = os.pathsep.join([str(tmp_path / "blocked"), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "embedx", "index", store],
        env=ENVIRONMENT | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "") and files(store) == []
    assert (
        done.stderr.split("\n")[-2] == "error: faiss is missing (No module named 'faiss'): pip install 'embedx[faiss]'"
    )


def child_of(parent: int) -> int:
    """The process of faiss, once it trains."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            if (
                "faiss_jobs" in Path(f"/proc/{pid}/cmdline").read_text()
                and "swigfaiss" in Path(f"/proc/{pid}/maps").read_text()
            ):
                return int(pid)
        time.sleep(0.02)
    raise AssertionError("there is none")


@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_what_ends_half_way_leaves_nothing(store: Path, how: str) -> None:
    slow = ["--factory", "IVF10,PQ16"]  # half a minute of annealing
    command = [sys.executable, "-m", "embedx", "index", str(store), *slow]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    child = child_of(process.pid)
    time.sleep(0.5)
    if how == "interrupt":
        process.send_signal(signal.SIGINT)
    else:
        os.kill(child, signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=20)
    code, told = {"interrupt": (130, "error: interrupted"), "kill": (1, "the process of faiss was killed by SIGKILL")}[
        how
    ]
    assert (process.returncode, stdout) == (code, "") and told in stderr and "Traceback" not in stderr
    assert stderr.count("error:") == 1 and files(store) == [] and not Path(f"/proc/{child}").exists()
