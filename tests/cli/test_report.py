"""`embedx report` as a user types it: the file, streams, exit codes, messages."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from embedx.store.format.manifest import Manifest
from tests.cli.calls import Embedx
from tests.store.builders import write_features
from tests.vectors.picture_store import write_picture_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_picture_store(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of rows whose inputs are no files."""
    targets = [row % 3 for row in range(60)]
    rows = torch.eye(3)[targets] * 9 + torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    return write_features(tmp_path_factory.mktemp("stores") / "store", {"train": (rows, targets)})


def test_the_page_is_written_and_its_path_is_all_of_stdout(call: Embedx, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    code, stdout, stderr = call("report", store, "--out", out, "--map", "pca", "--title", "Ants & bees")
    assert (code, stdout) == (0, f"{out}\n")
    assert "89 rows, 87 pictures" in stderr and "2 broken rows among 89" in stderr
    assert "1 duplicates among 87, 2 rows with a duplicate in another split among 87" in stderr
    assert "1 dark images among 87, 1 blurry images among 86" in stderr
    page = out.read_text()
    assert page.startswith("<!doctype html>") and "Ants &amp; bees" in page and len(page) < 10_000_000
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_json_is_one_object_and_quiet_is_quiet(call: Embedx, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    options = ("--map", "pca", "--no-images", "--color", "camera", "--json", "--quiet")
    code, stdout, stderr = call("report", store, "--out", out, *options)
    result = json.loads(stdout)
    assert (code, stderr, stdout.count("\n")) == (0, "", 1)
    assert (result["rows"], result["points"], result["pictures"], result["bytes"]) == (89, 87, 0, out.stat().st_size)
    assert result["duplicates"]["groups"] == 1 and result["degenerate"] == 2 and result["map"] == "PCA"
    assert {"of": "val", "in": "train", "rows": 1} in result["leaks"] and result["leaked"] == 2
    assert (result["dark"], result["tiny"], result["looked_at"]["dark"], result["degenerate"]) == (None, None, 0, 2)
    assert set(result["seconds"]) > {"map", "page"}


def test_what_was_not_looked_at_is_not_known(call: Embedx, store: Path, tmp_path: Path) -> None:
    code, _, stderr = call("report", store, "--out", tmp_path / "report.html", "--map", "pca", "--no-images")
    assert code == 0 and "dark images not known, blurry images not known, tiny images not known" in stderr
    page = (tmp_path / "report.html").read_text()
    assert '<a href="#images">Images</a>' in page and page.count('<span class="count">not known</span>') == 4


def test_a_file_that_is_there_is_replaced_only_if_that_is_asked_for(
    call: Embedx, features: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    out.write_text("mine")
    code, stdout, stderr = call("report", features, "--out", out, "--map", "pca")
    assert (code, stdout, out.read_text()) == (2, "", "mine") and "give --overwrite to replace it" in stderr
    assert call("report", features, "--out", out, "--map", "pca", "--overwrite").code == 0
    assert out.read_text() != "mine"
    code, stdout, stderr = call("report", features, "--out", features / "report.html", "--map", "pca")
    assert (code, stdout) == (2, "") and f"is in the store {features}; choose a path outside of it" in stderr
    assert not (features / "report.html").exists()


def test_settings_can_stand_in_a_file(call: Embedx, features: Path, tmp_path: Path) -> None:
    (tmp_path / "report.toml").write_text(
        f'out = "{tmp_path}/report.html"\nmap = "pca"\nno-images = true\npoints = 7\n'
    )
    result = json.loads(call("report", features, "--config", tmp_path / "report.toml", "--json").stdout)
    assert (result["points"], result["rows"]) == (7, 60) and any("--no-images" in each for each in result["notices"])


def test_an_unfinished_store_is_reported_with_a_notice(call: Embedx, features: Path, tmp_path: Path) -> None:
    shutil.copytree(features, tmp_path / "store")
    begun = Manifest.read(features)
    Manifest(begun.recipe, begun.plan, begun.environment).write(tmp_path / "store")
    code, _, stderr = call("report", tmp_path / "store", "--out", tmp_path / "report.html", "--map", "pca")
    assert code == 0 and "not complete; this report is on the rows committed so far" in stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--out", "nowhere/report.html"), "--out nowhere/report.html: there is no folder nowhere"),
        (("--out", "/"), "--out /: it is a folder"),
        (("--out", "/dev/null/x.html"), "--out /dev/null/x.html"),
        (("--split", "vall"), "unknown split 'vall'"),
        (("--name", "layer4"), "'layer4'"),
        (("--where", "tarket = 1"), "tarket"),
        (("--where", "target = 99"), "no rows where target = 99"),
        (("--where", "("), "--where ("),
        (("--color", "camra"), "unknown column 'camra'"),
        (("--color", "status"), "unknown column 'status'"),
        (("--points", "0"), "--points is 0"),
        (("--points", "60000"), "--points is 60000; give a number from 1 to 50,000"),
        (("--compare", "0"), "--compare is 0"),
        (("--threshold", "1.5"), "--threshold is 1.5"),
        (("--seed", "-1"), "--seed is -1"),
        (("--map", "tsen"), "--map is 'tsen'; give tsne, umap, pca or a file"),
        (("--map", "nothing.npy"), "--map nothing.npy: can't be read"),
        (("--device", "tpu"), "--device 'tpu' is none of auto, cpu, cuda"),
    ],
)
def test_what_can_not_be_done_is_one_message(
    call: Embedx, features: Path, tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    out = () if "--out" in options else ("--out", tmp_path / "report.html")
    code, stdout, stderr = call("report", features, *out, *options)
    assert (code, stdout) == (2, "") and told in stderr and "fault of embedx itself" not in stderr
    assert not list(tmp_path.iterdir())


def test_a_damaged_store_and_what_is_no_store_are_one_message(call: Embedx, features: Path, tmp_path: Path) -> None:
    shutil.copytree(features, tmp_path / "store")
    shard = next((tmp_path / "store" / "train").iterdir())
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    out = tmp_path / "report.html"
    code, stdout, stderr = call("report", tmp_path / "store", "--out", out, "--quiet")
    assert (code, stdout) == (1, "") and shard.name in stderr and not out.exists()
    code, _, stderr = call("report", tmp_path / "store" / "train", "--out", out)
    assert code == 2 and "is not a store" in stderr


def run_report(*arguments: str | Path, most_bytes: int | None = None) -> subprocess.Popen[str]:
    def limit() -> None:
        if most_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails with EFBIG, as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    command = [sys.executable, "-m", "embedx", "report", *map(str, arguments)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=limit)


def test_a_disk_that_is_full_leaves_nothing(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    process = run_report(features, "--out", out, "--map", "pca", most_bytes=20_000)
    stdout, stderr = process.communicate(timeout=100)
    assert (process.returncode in (1, 2), stdout) == (True, "") and "can't be written" in stderr
    assert not list(tmp_path.iterdir())


def test_an_interrupt_ends_it_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    rows = torch.randn(24_000, 64, generator=torch.Generator().manual_seed(0))
    store = write_features(tmp_path / "store", {"train": (rows, [None] * 24_000)}, rows_per_unit=8000)
    out = tmp_path / "out"
    out.mkdir()
    process = run_report(store, "--out", out / "report.html")
    while sum(psutil.Process(process.pid).cpu_times()[:2]) < 6 and process.poll() is None:  # the map takes most
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    asked = time.monotonic()
    stdout, stderr = process.communicate(timeout=100)
    assert time.monotonic() - asked < 5
    assert (process.returncode, stdout) == (130, "") and "Traceback" not in stderr
    assert not list(out.iterdir())
