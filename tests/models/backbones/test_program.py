from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import embedx
from embedx import ExtractConfig, sample
from embedx.data.decoding.images import decode, preprocess
from embedx.errors import ConfigError
from embedx.models.backbones import BackboneSpec, describe_backbone, describe_layers
from embedx.models.backbones.base import BackboneOptions
from embedx.run.extract import extract
from embedx.run.prepare import prepare
from tests.models.backbones.programs import HALVES, SIZE, STEPS, export, script, small
from tests.models.steps import steps_of

pytestmark = pytest.mark.usefixtures("one_thread")


def describe(path: Path, **settings: Any) -> BackboneSpec:
    settings = {"out": Path("store"), "batch_size": 8, **STEPS, **settings}
    return describe_backbone(ExtractConfig(backbone=str(path), **settings))


def images(batch: int = 8) -> Tensor:
    pixels = torch.randint(0, 256, (batch, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1))
    return pixels.to(torch.uint8, memory_format=torch.channels_last)  # as batches come


def reference(pixels: Tensor, model: nn.Module | None = None) -> Tensor:
    with torch.no_grad():
        features: Tensor = (model or small())((pixels / 255 - 0.5) / 0.25)
    return features


def assert_same(rows: Tensor, expected: Tensor) -> None:
    assert rows.shape == expected.shape
    assert (rows - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", ["fixed.pt2", "dynamic.pt2", "traced.ts", "frozen.pt", "dict.torchscript"])
def test_rows_are_what_the_program_gives(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if path.suffix == ".pt2":
        export(path, dynamic="dynamic" in kind)
    else:
        script(path, small(as_dict="dict" in kind), freeze="frozen" in kind)
    settings: dict[str, Any] = {
        "data": (str(sample.IMAGES / "val"),),
        "workers": 0,
        "batch_size": 8,
        "device": "cpu",
        **STEPS,
    }
    extract(ExtractConfig(backbone=str(path), out=tmp_path / "store", **settings))
    rows = embedx.open(tmp_path / "store").load("all", framework="torch")
    job = prepare(ExtractConfig(backbone=str(path), out=tmp_path / "store", **settings))
    pixels = torch.stack(
        [preprocess(decode((sample.IMAGES / "val" / key).read_bytes()), steps_of(job.spec)) for key in rows.keys]
    )
    assert_same(rows.embeddings, reference(pixels))
    recipe = embedx.open(tmp_path / "store").recipe
    assert recipe["weights"] == {"name": "program", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_an_exported_program_of_one_batch_size_asks_for_it(tmp_path: Path) -> None:
    path = export(tmp_path / "fixed.pt2", batch=8)
    with pytest.raises(ConfigError, match=r"fixed\.pt2 takes batches of 8; give --batch-size 8"):
        describe(path, batch_size=32)
    dynamic = describe(export(tmp_path / "dynamic.pt2", dynamic=True), batch_size=5)
    assert dynamic.shapes == {"embeddings": (6,)}
    assert_same(dynamic.load()(images(5))["embeddings"], reference(images(5)))


def test_torchscript_of_one_batch_size_asks_for_it(tmp_path: Path) -> None:
    path = script(tmp_path / "fixed.ts", small(batch=8))
    assert describe(path).shapes == {"embeddings": (6,)}
    with pytest.raises(ConfigError, match="if it takes batches of 8, give --batch-size 8"):
        describe(script(tmp_path / "pooled.ts", Pooled()), batch_size=4)


class Pooled(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.reshape(8, -1)


def test_the_image_size_is_the_exported_one(tmp_path: Path) -> None:
    path = export(tmp_path / "fixed.pt2")
    assert steps_of(describe(path, image_size=None)).crop == SIZE
    with pytest.raises(ConfigError, match=r"takes images of 32x32, not 48x48; give --image-size 32"):
        describe(path, image_size=48)
    with pytest.raises(ConfigError, match=r"the preprocessing of .*fixed\.pt2 is unknown; give --mean and --std"):
        describe(path, image_size=None, mean=None, std=None)


def test_torchscript_that_does_not_take_the_images_says_so(tmp_path: Path) -> None:
    path = script(tmp_path / "traced.ts", small())
    with pytest.raises(ConfigError, match=r"traced\.ts does not take images of 40x40: RuntimeError: shape"):
        describe(path, image_size=40)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": "random"}, "--weights random: a program has its weights inside; leave it out"),
        ({"checkpoint": Path("w.pth")}, r"--checkpoint w\.pth: a program has its weights inside; leave it out"),
        ({"precision": "bf16"}, r"--precision bf16: .* computes as it was made; leave it out"),
        ({"layer": ("conv",)}, "is a program, whose layers can't be reached; leave --layer out"),
        ({"backbone_arg": ("a=1",)}, r"--backbone-arg is for backbones given as package\.module:factory"),
    ],
)
def test_what_a_program_does_not_have_is_a_fault(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        describe(script(tmp_path / "traced.ts", small()), **settings)


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        describe(tmp_path / "none.pt2", weights="random", precision="fp16")
    assert len(caught.value.faults) == 3 and f"{tmp_path}/none.pt2: there is no such file" in str(caught.value)


def test_a_program_has_no_layers(tmp_path: Path) -> None:
    path = script(tmp_path / "traced.ts", small())
    with pytest.raises(ConfigError, match="whose layers can't be reached"):
        describe_layers(BackboneOptions(backbone=str(path), image_size=SIZE))


def test_what_is_no_program_says_what_to_give_instead(tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "weights.pt")
    (tmp_path / "text.pt2").write_text("hello")
    for name in ("weights.pt", "text.pt2"):
        with pytest.raises(
            ConfigError, match=r"neither an exported program nor TorchScript; .* give it as --checkpoint"
        ):
            describe(tmp_path / name)


def test_a_damaged_program_is_a_fault(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.ts", "w") as archive:
        archive.writestr("a/constants.pkl", b"")
    with pytest.raises(ConfigError, match=r"can't read this program \(\w+: "):
        describe(tmp_path / "a.ts")


class Two(nn.Module):
    def forward(self, images: Tensor, more: Tensor) -> Tensor:
        return images + more


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (Two(), (torch.zeros(8, 3, 32, 32),) * 2, "does not take images alone"),
        (Pooled(), (torch.zeros(8, 3, 32, 32, dtype=torch.float64),), r"takes images of torch\.float64; export it for"),
        (Pooled(), (torch.zeros(8, 3, 32, 48),), "takes images of 32x48; embedx gives square ones"),
    ],
)
def test_a_program_that_takes_something_else_is_a_fault(
    tmp_path: Path, model: nn.Module, inputs: tuple[Tensor, ...], message: str
) -> None:
    torch.export.save(torch.export.export(model, inputs), tmp_path / "other.pt2")
    with pytest.raises(ConfigError, match=message):
        describe(tmp_path / "other.pt2", mean=HALVES)
