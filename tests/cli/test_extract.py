"""The main job as typed, with torchvision's own weights."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from embedx import sample
from embedx.store.reading.verify import verify
from tests.cli.calls import Embedx
from tests.runs import run


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_resnet50_as_typed_with_torchvision_s_weights_in_the_cache(tmp_path: Path) -> None:
    import torch
    from torchvision import models

    torch.manual_seed(0)
    cached = tmp_path / "cache" / "hub" / "checkpoints" / "resnet50-11ad3fa6.pth"
    cached.parent.mkdir(parents=True)
    torch.save(models.resnet50().state_dict(), cached)
    environment = {"TORCH_HOME": str(tmp_path / "cache")}
    done = run("extract", "--backbone", "resnet50", "--out", "dir", env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "dir/manifest.json\n"), done.stderr
    assert list(verify(tmp_path / "dir")) == []
    recipe = json.loads((tmp_path / "dir/manifest.json").read_text())["recipe"]
    assert recipe["weights"]["name"] == "ResNet50_Weights.IMAGENET1K_V2"
    assert recipe["weights"]["sha256"] == hashlib.sha256(cached.read_bytes()).hexdigest()


def test_resnet50_without_cache_or_network_says_what_to_do(tmp_path: Path) -> None:
    environment = {"TORCH_HOME": str(tmp_path / "cache")}
    done = run("extract", "--backbone", "resnet50", "--out", "dir", env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    for part in ("ResNet50_Weights.IMAGENET1K_V2", "--checkpoint", "--weights random", f"{tmp_path}/cache/hub"):
        assert part in done.stderr.replace("\n", ""), done.stderr
    assert not (tmp_path / "dir").exists()


def test_a_call_in_process_leaves_nothing_frozen(embedx: Embedx, tmp_path: Path) -> None:
    """What is frozen can't be freed at exit, of which bindings such as triton's complain on stderr."""
    frozen = gc.get_freeze_count()
    images = sample.IMAGES / "val" / "star"
    done = embedx("extract", "--backbone", sample.BACKBONE, "--weights", "sample", "-j", "0", "-o", tmp_path, images)
    assert done.code == 0 and gc.get_freeze_count() <= frozen  # Python 3.12 begins with some


def test_a_program_that_watches_gets_one_object_a_line(embedx: Embedx, tmp_path: Path) -> None:
    """It adds up, down to the rejected input, whose name steers no terminal; an error is an object too."""
    images = tmp_path / "images"
    shutil.copytree(sample.IMAGES / "val" / "star", images)
    (images / "bad\x1b[31m.png").write_bytes(b"no image")
    arguments = ("--backbone", sample.BACKBONE, "--weights", "sample", "-j", "0", "-o", tmp_path / "store", images)
    done = embedx("extract", *arguments, "--progress", "json", "--verbose")
    assert done.code == 3 and done.stdout == f"{tmp_path}/store/manifest.json\n"
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert events[0]["event"] == "begin" and "extract --backbone" in events[0]["title"]
    assert events[-1] == {"event": "end", "time": events[-1]["time"], "exit_code": 3}
    assert events[-2]["text"].startswith("error: 1 input rejected")
    *_, last = (each for each in events if each.get("state") == "embedding")
    total = sum(1 for path in images.rglob("*.*"))
    facts = {name: last[name] for name in ("split", "done", "total", "rejected", "unavailable", "eta")}
    assert facts == {"split": "all", "done": total, "total": total, "rejected": 1, "unavailable": 0, "eta": 0.0}
    texts = [each["text"] for each in events if each["event"] == "message"]
    assert any(text.startswith("rejected: bad") for text in texts) and "\x1b" not in "".join(texts)
    assert any(f"torch {version('torch')}" in text for text in texts)
    assert any("batches of 32, 0 workers" in text for text in texts)


def test_a_program_that_watches_hears_of_rows_that_are_not_finite(embedx: Embedx, tmp_path: Path) -> None:
    """They are found a batch or two later than they are computed; what is found by the end is in the last line."""
    features = np.ones((400, 4), dtype=np.float32)
    features[:5, 1] = np.nan
    np.save(tmp_path / "features.npy", features)
    arguments = ("--backbone", "none", "-j", "0", "-b", "4", "-o", tmp_path / "store", tmp_path / "features.npy")
    done = embedx("extract", *arguments, "--progress", "json", "--max-errors", "5")
    assert done.code == 0
    *_, last = (each for each in map(json.loads, done.stderr.splitlines()) if each.get("state") == "embedding")
    assert (last["done"], last["rejected"], last["unavailable"]) == (400, 5, 0)
