from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torchvision import models

from embedx.config import ExtractConfig
from embedx.errors import CheckpointError
from embedx.models.backbones import describe_backbone
from embedx.models.embedder import Embedder
from embedx.models.weights.matching import CheckpointMatch
from embedx.models.weights.read import read_state_dict

SMALL = "squeezenet1_1"
HEAD = "classifier.1"
SAVE: dict[str, Callable[[Any, Path], None]] = {".pth": torch.save, ".safetensors": safetensors.torch.save_file}
WRAPPINGS = [
    *((key,) for key in ("state_dict", "model", "teacher", "student", "model_ema", "module", "net")),
    (),
    ("model", "state_dict"),
]
PREFIXES = [
    *("", "module.", "backbone.", "encoder.", "model.", "_orig_mod.", "encoder_q.", "teacher.backbone."),
    *("module.encoder_q.", "_orig_mod.module.backbone.", "features.0.", "no.list.has.this."),
]
IMAGES = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def settings(backbone: str = SMALL, **options: Any) -> ExtractConfig:
    return ExtractConfig(backbone=backbone, out=Path("store"), **options)


def state_dict(backbone: str = SMALL, **options: Any) -> dict[str, Tensor]:
    return dict(models.get_model(backbone, weights=None, **options).state_dict())


def load(path: Path, backbone: str = SMALL, **options: Any) -> Embedder:
    return describe_backbone(settings(backbone, checkpoint=path, **options)).load()


def load_and_match(path: Path) -> tuple[Embedder, CheckpointMatch]:
    spec = describe_backbone(settings(checkpoint=path))
    embedder = spec.load()
    assert spec.architecture.match is not None
    return embedder, spec.architecture.match


def saved(path: Path, state: Any) -> Path:
    save: Callable[[Any, Path], None] = SAVE.get(path.suffix, torch.save)
    save(state, path)
    return path


def nested(state: dict[str, Tensor], keys: tuple[str, ...] = (), prefix: str = "") -> dict[str, Any]:
    """A checkpoint as training scripts write them: weights, a head, an optimizer's state, numbers and settings."""
    content: dict[str, Any] = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    content[f"{prefix}projector.0.weight"] = torch.zeros(3)
    for key in reversed(keys):
        exp_avg = {i: {"exp_avg": torch.zeros_like(tensor), "step": 1} for i, tensor in enumerate(state.values())}
        content = {"epoch": 3, key: content, "optimizer": {"state": exp_avg, "param_groups": [{"lr": 0.1}]}}
    return content


def flat(content: Any, prefix: str = "") -> dict[str, Tensor]:
    if isinstance(content, Tensor):
        return {prefix.removesuffix("."): content.clone()}
    items = content.items() if isinstance(content, dict) else ()
    return {name: tensor for key, value in items for name, tensor in flat(value, f"{prefix}{key}.").items()}


def sharded(folder: Path, state: dict[str, Tensor], suffix: str) -> Path:
    """Two shards and their index, in Hugging Face's layout."""
    stem = {".safetensors": "model", ".bin": "pytorch_model"}[suffix]
    weight_map = {name: f"{stem}-0000{1 + i % 2}-of-00002{suffix}" for i, name in enumerate(state)}
    for file in set(weight_map.values()):
        saved(folder / file, {name: state[name] for name, shard in weight_map.items() if shard == file})
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def refusal(path: Path, backbone: str = SMALL, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path, backbone, **options)
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


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], Tensor]:
    """A backbone's tensors, without its head, and the embeddings that a plain file of them gives."""
    state = {name: tensor for name, tensor in state_dict().items() if not name.startswith(HEAD)}
    path = saved(tmp_path_factory.mktemp("plain") / "weights.pth", state)
    return state, load(path)(IMAGES)["embeddings"]


@pytest.mark.parametrize(
    ("keys", "suffix"),
    [*((keys, ".pth") for keys in WRAPPINGS), (("state_dict",), ".safetensors"), ((), ".safetensors")],
)
def test_wrapped_and_prefixed_weights_give_the_same_embeddings(
    tmp_path: Path, plain: tuple[dict[str, Tensor], Tensor], suffix: str, keys: tuple[str, ...]
) -> None:
    state, embeddings = plain
    for prefix in PREFIXES:
        content = nested(state, keys, prefix)
        path = saved(tmp_path / f"weights{suffix}", content if suffix == ".pth" else flat(content))
        embedder, match = load_and_match(path)
        assert match.prefix == "".join(f"{key}." for key in keys) + prefix
        assert len(match.tensors) == len(state)
        assert len(match.ignored) == 1 + len(keys) * len(state)
        assert torch.equal(embedder(IMAGES)["embeddings"], embeddings)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".pth.tar", ".safetensors"])
def test_every_kind_of_file_gives_the_same_embeddings(
    tmp_path: Path, plain: tuple[dict[str, Tensor], Tensor], suffix: str
) -> None:
    state, embeddings = plain
    content = nested(state, ("state_dict",), "module.encoder_q.")
    path = saved(tmp_path / f"weights{suffix}", flat(content) if suffix == ".safetensors" else content)
    assert torch.equal(load(path)(IMAGES)["embeddings"], embeddings)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_sharded_checkpoint_is_read_through_its_index(
    tmp_path: Path, plain: tuple[dict[str, Tensor], Tensor], suffix: str
) -> None:
    state, embeddings = plain
    index = sharded(tmp_path, flat(nested(state, prefix="backbone.")), suffix)
    embedder, match = load_and_match(index)
    assert torch.equal(embedder(IMAGES)["embeddings"], embeddings)
    assert match.ignored == ("backbone.projector.0.weight",)
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (index, *sorted(tmp_path.glob(f"*{suffix}")))]
    assert len(hashes) == 3
    assert describe_backbone(settings(checkpoint=index)).architecture.weights.to_json() == {
        "name": "checkpoint",
        "sha256": hashlib.sha256("".join(f"{line}\n" for line in hashes).encode()).hexdigest(),
    }


def test_shards_may_be_links_as_in_hugging_faces_cache(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    index = sharded(tmp_path, state := state_dict(), ".safetensors")
    for number, shard in enumerate(tmp_path.glob("*.safetensors")):
        shard.symlink_to(shard.rename(tmp_path / f"blobs/{number}"))
    assert same(load(index), state)


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    index = sharded(tmp_path, state_dict(), ".safetensors")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert refusal(index) == (
        f"{index}: its shard 'model-00002-of-00002.safetensors' is missing; put all its shards beside it"
    )


def test_shards_of_another_checkpoint_are_refused(tmp_path: Path) -> None:
    index = sharded(tmp_path, state_dict(), ".safetensors")
    saved(tmp_path / "model-00001-of-00002.safetensors", {"features.0.weight": torch.zeros(1)})
    message = refusal(index)
    assert "its shards lack features.3.squeeze.weight, " in message
    assert message.endswith(", …; get index and shards from the same place")


@pytest.mark.parametrize("shard", ["../weights.pth", "a/../../weights.pth", "/etc/passwd"])
def test_an_index_can_not_reach_out_of_its_folder(tmp_path: Path, shard: str) -> None:
    saved(tmp_path / "weights.pth", state_dict())
    index = tmp_path / "folder" / "model.bin.index.json"
    index.parent.mkdir()
    index.write_text(json.dumps({"weight_map": {"features.0.weight": shard}}))
    assert f"names the shard {shard!r}, which is not in the index's own folder" in refusal(index)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}', "[" * 10**5, "\xff", '{"weight_map": {}}'])
def test_what_is_no_index_is_refused(tmp_path: Path, content: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content, encoding="latin-1")
    assert "the index of a sharded checkpoint" in refusal(index)


@pytest.mark.parametrize("shard", ["a\0b", "\ud800", ".", "", "x" * 300])
def test_an_index_that_names_no_file_is_refused(tmp_path: Path, shard: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"features.0.weight": shard}}))
    assert "is missing; put all its shards beside it" in refusal(index)


def test_teacher_and_student_are_chosen_between_by_key(tmp_path: Path) -> None:
    teacher, student = state_dict(), state_dict()
    content = {"student": nested(student, (), "module.backbone."), "teacher": nested(teacher, (), "backbone.")}
    path = saved(tmp_path / "dino.pth", content)
    assert refusal(path) == (
        f"{path}: 2 sub-models fit the backbone equally well; "
        "choose with --checkpoint-key student.module.backbone or --checkpoint-key teacher.backbone"
    )
    for key in ("teacher", "teacher.backbone"):
        assert same(load(path, checkpoint_key=key), teacher)
    assert same(load(path, checkpoint_key="student"), student)
    assert refusal(path, checkpoint_key="ema") == (
        f"{path}: nothing is under --checkpoint-key ema; its top-level keys are student, teacher"
    )
    weights = describe_backbone(settings(checkpoint=path, checkpoint_key="teacher")).architecture.weights
    assert weights.to_json()["key"] == "teacher"


def test_a_key_without_a_checkpoint_is_a_fault(tmp_path: Path) -> None:
    faults = ExtractConfig(backbone=SMALL, out=tmp_path, checkpoint_key="teacher").faults()
    assert faults == ["--checkpoint-key teacher is a part of a --checkpoint; give that too"]


@pytest.mark.parametrize("suffix", SAVE)
@pytest.mark.parametrize("backbone", [SMALL, "shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_a_state_dict_is_loaded_as_it_was_saved(tmp_path: Path, suffix: str, backbone: str) -> None:
    state = state_dict(backbone)
    path = saved(tmp_path / f"weights{suffix}", state)
    spec = describe_backbone(settings(backbone, checkpoint=path))
    assert spec.architecture.weights.to_json() == {
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
    message = refusal(saved(tmp_path / "weights.pth", state_dict()), "mobilenet_v3_small")
    assert "it holds features.0.weight, " in message and "backbone's tensors, features.0.0.weight, " in message


@pytest.mark.parametrize(
    ("file", "backbone", "fault"),
    [
        ("resnet18", "resnet34", "80 missing: layer1.2.conv1.weight, "),
        ("resnet34", "resnet18", "96 unexpected: layer1.2.conv1.weight, "),
        (
            "wide_resnet50_2",
            "resnet50",
            "of another shape: layer1.0.conv1.weight [128, 64, 1, 1] instead of [64, 64, 1, 1], ",
        ),
    ],
)
def test_a_relative_of_the_backbone_is_refused(tmp_path: Path, file: str, backbone: str, fault: str) -> None:
    with torch.device("meta"):
        own = models.get_model(file, weights=None).state_dict()
    for prefix in ("", "module.backbone."):  # with tensors of one number, stretched to their shapes: small files
        state = {f"{prefix}{name}": torch.zeros((), dtype=it.dtype).expand(it.shape) for name, it in own.items()}
        message = refusal(saved(tmp_path / "weights.pth", {"model": state}), backbone)
        assert f"does not fit the backbone: under the prefix 'model.{prefix}' " in message and fault in message


def test_half_of_the_tensors_are_not_enough(tmp_path: Path) -> None:
    half = dict([*state_dict().items()][:26])
    message = refusal(saved(tmp_path / "weights.pth", nested(half, ("state_dict",), "module.")))
    assert "under the prefix 'state_dict.module.' 26 of its 50 tensors match\n  24 missing: features.9." in message


def test_settings_paths_and_numbers_beside_the_weights_are_passed_over(tmp_path: Path) -> None:
    beside = {
        "args": argparse.Namespace(arch="vit", out=tmp_path, lr=np.float32(0.1)),
        "best": np.float64(0.5),
        "curve": np.zeros(3),
        "rng": torch.get_rng_state(),
    }
    path = saved(tmp_path / "dino.pth", {"state_dict": (state := state_dict())} | beside)
    embedder, match = load_and_match(path)
    assert same(embedder, state)
    assert match.ignored == ("state_dict.classifier.1.weight", "state_dict.classifier.1.bias", "curve", "rng")


@pytest.mark.parametrize("content", [b"\x80\x02", b"PK\x03\x04 no archive", b"\0" * 64])
@pytest.mark.parametrize("suffix", SAVE)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    assert "not a readable checkpoint" in refusal(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; copy or download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "fetch them with `git lfs pull`"),
        (b"\n<!DOCTYPE html><html>", "is a web page; download the file itself"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "download the file again"),
        (b"\x89HDF\r\n\x1a\n", "get the model's weights for PyTorch"),
        (gzip.compress(b"x", mtime=0), "unpack it with gunzip"),
    ],
)
@pytest.mark.parametrize("suffix", SAVE)
def test_what_is_taken_for_a_checkpoint_is_named(tmp_path: Path, suffix: str, content: bytes, words: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    assert refusal(path).endswith(words) or words in refusal(path)


def test_the_content_and_not_the_suffix_tells_the_format(tmp_path: Path) -> None:
    state = {"a": torch.ones(2)}
    for suffix in (".bin", ".pth", ".ckpt", ""):
        safetensors.torch.save_file(state, tmp_path / f"weights{suffix}", metadata={"format": "pt"})
        assert torch.equal(read_state_dict(tmp_path / f"weights{suffix}")["a"], state["a"])


def test_a_folder_of_hugging_face_s_layout_is_read(tmp_path: Path) -> None:
    sharded(tmp_path, state := state_dict(), ".safetensors")
    assert same(load(tmp_path), state)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/readme.txt").touch()
    assert "a folder that holds readme.txt, and neither model.safetensors nor" in refusal(tmp_path / "empty")


def test_an_archive_of_something_else_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "weights.pth", "w") as archive:
        archive.writestr("a/weights.bin", b"x")
    assert refusal(tmp_path / "weights.pth").endswith("is a zip archive of weights.bin; unpack it, and give the file")
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "program.pt2")
    assert "is an exported program, no checkpoint; give it as --backbone " in refusal(tmp_path / "program.pt2")


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
    assert "not a readable checkpoint" in refusal(path)


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
        assert spec.architecture.weights.to_json() == {
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
    assert spec.architecture.weights.to_json() == {
        "name": "SqueezeNet1_1_Weights.IMAGENET1K_V1",
        "sha256": "not in the cache",
    }
    assert not cache.exists()
