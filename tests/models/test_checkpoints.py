from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torchvision import models

from embedx.config import ExtractConfig
from embedx.errors import CheckpointError, ConfigError
from embedx.models.backbones import describe_backbone
from embedx.models.checkpoints import find_weights, read_state_dict
from embedx.models.features import Embedder

SMALL = "squeezenet1_1"
HEAD = "classifier.1"
SAVE: dict[str, Callable[[Any, Path], None]] = {".pth": torch.save, ".safetensors": safetensors.torch.save_file}


def settings(backbone: str = SMALL, **options: Any) -> ExtractConfig:
    return ExtractConfig(backbone=backbone, out=Path("store"), **options)


def state_dict(backbone: str = SMALL, **options: Any) -> dict[str, Tensor]:
    return dict(models.get_model(backbone, weights=None, **options).state_dict())


def load(path: Path, backbone: str = SMALL) -> Embedder:
    return describe_backbone(settings(backbone, checkpoint=path)).load()


def saved(path: Path, state: Any) -> Path:
    SAVE[path.suffix](state, path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)
    return str(caught.value)


def same(embedder: Embedder, state: dict[str, Tensor]) -> bool:
    own = embedder.backbone.state_dict()
    return len(own) > 0 and all(torch.equal(tensor, state[name]) for name, tensor in own.items())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch's, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "torch/hub/checkpoints"


@pytest.mark.parametrize("suffix", SAVE)
@pytest.mark.parametrize("backbone", [SMALL, "shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_a_state_dict_is_loaded_as_it_was_saved(tmp_path: Path, suffix: str, backbone: str) -> None:
    state = state_dict(backbone)
    path = saved(tmp_path / f"weights{suffix}", state)
    spec = describe_backbone(settings(backbone, checkpoint=path))
    assert spec.weights.to_json() == {
        "name": "checkpoint",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    embedder = spec.load()
    assert same(embedder, state)
    assert all(tensor.device.type == "cpu" for tensor in (*embedder.parameters(), *embedder.buffers()))
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    assert embedder(images)["embeddings"].isfinite().all()


def test_the_classifier_may_be_missing_or_of_other_classes(tmp_path: Path) -> None:
    state = state_dict()
    without = {name: tensor for name, tensor in state.items() if not name.startswith(HEAD)}
    assert len(without) == len(state) - 2
    assert same(load(saved(tmp_path / "without.pth", without)), state)
    other = state_dict(num_classes=7)
    assert same(load(saved(tmp_path / "other.safetensors", other)), other)


@pytest.mark.parametrize("backbone", ["googlenet", "inception_v3"])
def test_auxiliary_classifiers_are_not_used(tmp_path: Path, backbone: str) -> None:
    state = state_dict(backbone, init_weights=False, aux_logits=True)
    assert any(name.startswith(("aux1", "AuxLogits")) for name in state)
    assert same(load(saved(tmp_path / "weights.pth", state), backbone), state)


def test_densenets_old_names_are_understood(tmp_path: Path) -> None:
    state = state_dict("densenet121")
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): value for name, value in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    assert same(load(saved(tmp_path / "old.pth", old), "densenet121"), state)


def test_a_counter_that_old_checkpoints_lack_is_not_missed(tmp_path: Path) -> None:
    state = state_dict("shufflenet_v2_x0_5")
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    load(saved(tmp_path / "old.pth", old), "shufflenet_v2_x0_5")


def test_half_precision_weights_are_loaded_in_the_models_type(tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in state_dict().items()}
    embedder = load(saved(tmp_path / "half.safetensors", state))
    assert {parameter.dtype for parameter in embedder.parameters()} == {torch.float32}


@pytest.mark.parametrize("suffix", SAVE)
def test_all_that_does_not_fit_is_listed(tmp_path: Path, suffix: str) -> None:
    state = state_dict()
    del state["features.0.bias"]
    state["features.13.weight"] = torch.zeros(1)
    state["features.3.squeeze.weight"] = torch.zeros(2, 3)
    message = refusal(saved(tmp_path / f"weights{suffix}", state))
    assert "does not fit the backbone" in message
    assert "1 missing: features.0.bias" in message
    assert "1 unexpected: features.13.weight" in message
    assert "1 of another shape: features.3.squeeze.weight [2, 3] instead of [16, 64, 1, 1]" in message


def test_another_backbones_weights_are_refused_in_a_few_lines(tmp_path: Path) -> None:
    message = refusal(saved(tmp_path / "weights.pth", state_dict("shufflenet_v2_x0_5")))
    assert "it holds conv1.0.weight, " in message and "none of the backbone's tensors, features.0.weight, " in message
    assert message.count(" …") == 2 and message.endswith("; give the --backbone that it is a checkpoint of")
    assert len(message) < 2000


class Bomb:
    """What pickle turns into a call when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_file_that_carries_code_is_refused_and_the_code_is_not_run(tmp_path: Path) -> None:
    path = saved(tmp_path / "bomb.pth", {**state_dict(), "extra": Bomb(tmp_path / "made")})
    message = refusal(path)
    assert "would run code" in message and "safetensors.torch.save_file" in message
    assert not (tmp_path / "made").exists()


def test_a_whole_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(models.squeezenet1_1(weights=None), path)
    assert "save the weights alone" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"PK\x03\x04 no archive", b"\0" * 64])
@pytest.mark.parametrize("suffix", SAVE)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    assert "not a readable checkpoint" in refusal(path) or "or it is damaged" in refusal(path)


def test_a_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"a text")
    refusal(path)


@pytest.mark.parametrize("suffix", SAVE)
@pytest.mark.parametrize("share", [0.001, 0.5, 0.99])
def test_half_a_checkpoint_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = saved(tmp_path / f"weights{suffix}", state_dict())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "not a readable checkpoint" in refusal(path) or "or it is damaged" in refusal(path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"epoch": 3, "state_dict": {}, "optimizer": {}}, "it holds the keys epoch, state_dict, optimizer"),
        ([torch.zeros(2)], "list"),
        (torch.zeros(2), "Tensor"),
    ],
)
def test_what_is_no_state_dict_is_refused_with_what_is_there(tmp_path: Path, content: Any, found: str) -> None:
    message = refusal(saved(tmp_path / "nested.pth", content))
    assert "not a state dict of tensors" in message and found in message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "can't be read (No such file or directory)" in refusal(tmp_path / "missing.pth")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        read_state_dict(tmp_path / "missing.pth")


def test_torchvisions_weights_are_found_in_the_cache(cache: Path) -> None:
    state = state_dict()
    cache.mkdir(parents=True)
    path = saved(cache / "squeezenet1_1-b8a52dc0.pth", state)
    for name in ("DEFAULT", "IMAGENET1K_V1", "SqueezeNet1_1_Weights.IMAGENET1K_V1"):
        spec = describe_backbone(settings(weights=name))
        assert spec.weights.to_json() == {
            "name": "SqueezeNet1_1_Weights.IMAGENET1K_V1",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
    assert same(spec.load(), state)


def test_every_weights_file_carries_its_hash() -> None:
    urls = [weights.url for name in models.list_models(module=models) for weights in models.get_model_weights(name)]
    assert all(re.search(r"-[0-9a-f]{8,}\.pth$", url) for url in urls)


def test_weights_that_can_not_be_had_are_an_error_that_names_the_ways_out(cache: Path) -> None:
    start = time.monotonic()
    with pytest.raises(
        CheckpointError, match=r"SqueezeNet1_1_Weights\.IMAGENET1K_V1 is not in torch's cache"
    ) as caught:
        describe_backbone(settings())
    assert time.monotonic() - start < 10
    for way in ("--checkpoint", "--weights random", str(cache / "squeezenet1_1-b8a52dc0.pth")):
        assert way in str(caught.value)
    assert not cache.exists() or list(cache.iterdir()) == []


def test_weights_that_are_not_to_be_fetched_are_named_without_a_hash(cache: Path) -> None:
    spec = describe_backbone(settings(), download=False)
    assert spec.weights.to_json() == {"name": "SqueezeNet1_1_Weights.IMAGENET1K_V1", "sha256": "not in the cache"}
    assert not cache.exists()


def test_random_weights_are_named_with_their_seed() -> None:
    weights, _ = find_weights(settings(weights="random", seed=7), download=False)
    assert weights.to_json() == {"name": "random", "seed": 7}


def test_unknown_weights_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown --weights 'IMAGENET1K'; did you mean IMAGENET1K_V1\?"):
        find_weights(settings(weights="IMAGENET1K"), download=False)


def test_the_bundled_weights_are_those_of_one_backbone() -> None:
    with pytest.raises(ConfigError, match=r"--weights sample are those of (\w+); give --backbone \1"):
        find_weights(settings(weights="sample"), download=False)
