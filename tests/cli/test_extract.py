"""The main job as typed, with torchvision's own weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from embedx.store.reading.verify import verify
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
