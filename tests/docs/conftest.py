"""Folders in which the steps of the README and of the manual are taken."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import timm
import torch
from pyarrow import csv, parquet
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from embedx import sample
from embedx.models.weights.find import cache_path
from tests.docs.pages import ROOT, Reader, type_line
from tests.models.backbones.text_image import save_open_clip
from tests.servers import s3_server, upload

PHOTOS = (
    "astronaut.png",
    "brick.png",
    "chelsea.png",
    "coffee.png",
    "grass.png",
    "gravel.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "rocket.jpg",
)


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Caches of torch and of the Hugging Face hub, and no network: the weights that pages name are random ones here."""
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(folder / "torch"))
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
        patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        yield folder


def pretend(name: str, **options: bool | None) -> None:
    """Puts random weights where torch keeps the pretrained ones of a torchvision model."""
    path = cache_path(models.get_model_weights(name).DEFAULT.url)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates its quantisation
        torch.save(models.get_model(name, weights=None, **options).state_dict(), path)


def snapshot(caches: Path, repository: str) -> Path:
    """The folder in which the Hugging Face hub's cache has a repository's files."""
    folder = caches / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    return folder / "snapshots" / ("0" * 40)


@pytest.fixture(scope="session")
def readme(tmp_path_factory: pytest.TempPathFactory, caches: Path, photos: Path) -> Reader:
    """Somebody with a folder of photographs, who has the README."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "photos").mkdir()
    for name in PHOTOS:
        shutil.copy(photos / name, folder / "photos" / name)
    pretend("resnet50")
    return Reader("README", folder)


@pytest.fixture(scope="session")
def lake(workplace: Path) -> Iterator[None]:
    """A bucket of that name, with the photographs."""
    with s3_server() as client:
        for name in ("photos", "pics"):
            upload(client, "lake", workplace / "photos", f"{name}/")
        yield


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory, workplace: Path, lake: None) -> Callable[[str], Reader]:
    """Somebody who reads a page, in a folder of that page with all that the pages name."""
    readers: dict[str, Reader] = {}

    def of(page: str) -> Reader:
        if page not in readers:
            folder = tmp_path_factory.mktemp(page)
            shutil.copytree(workplace, folder, copy_function=os.link, symlinks=True, dirs_exist_ok=True)
            readers[page] = Reader(page, folder)
        return readers[page]

    return of


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory, caches: Path) -> Path:
    """A folder with the inputs, checkpoints and stores that the pages name."""
    folder = tmp_path_factory.mktemp("workplace")
    _write_inputs(folder)
    _write_models(folder, caches)
    (recipe,) = re.findall(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in recipe.replace("$(BIN)/", "").splitlines():
            type_line(line.strip(), as_shown=True)
    for name in ("before", "after"):
        (folder / name).symlink_to("demo")
    return folder


def _write_inputs(folder: Path) -> None:
    for split in ("train", "val"):
        for source in sorted((sample.IMAGES / split).iterdir())[:2]:
            place = folder / "photos" / split / source.name
            place.mkdir(parents=True)
            for image in sorted(source.iterdir())[:2]:
                (place / image.name).write_bytes(image.read_bytes())
    images = sorted((folder / "photos").rglob("*.*"))
    species = [image.parent.name for image in images]
    names = [str(image.relative_to(folder)) for image in images]
    csv.write_csv(pa.table({"id": range(len(names)), "file": names, "species": species}), folder / "images.csv")
    embedded = [{"bytes": image.read_bytes(), "path": name} for image, name in zip(images, names, strict=True)]
    parquet.write_table(pa.table({"image": embedded, "label": species}), folder / "images.parquet")
    (folder / "parts").mkdir()
    for number in range(2):
        half = pa.table({"image": embedded[number::2], "label": species[number::2]})
        parquet.write_table(half, folder / "parts" / f"train-{number:05d}-of-00002.parquet")
    for number, split in enumerate(("train", "val")):
        with tarfile.open(folder / f"shard-{number:06d}.tar", "w") as archive:
            archive.add(folder / "photos" / split, split)


def _write_models(folder: Path, caches: Path) -> None:
    pretend("resnet18")
    pretend("mobilenet_v3_small")
    pretend("lraspp_mobilenet_v3_large", weights_backbone=None)
    pretend("quantized_shufflenet_v2_x0_5", quantize=True)
    save_file(
        timm.create_model("resnet10t").state_dict(), snapshot(caches, "timm/resnet10t.c3_in1k") / "model.safetensors"
    )
    dinov2 = snapshot(caches, "facebook/dinov2-base")
    small = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=56)
    Dinov2Model(small).save_pretrained(dinov2)
    BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}).save_pretrained(dinov2)
    save_open_clip(folder / "my-clip")
    resnet = models.resnet18(weights=None).eval()
    state = {f"model.{name}": tensor for name, tensor in resnet.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, folder / "last.ckpt")
    _export(resnet, folder / "model.pt2")


def _export(model: nn.Module, path: Path) -> None:
    batch = {0: torch.export.Dim("batch")}
    torch.export.save(torch.export.export(model, (torch.zeros(2, 3, 64, 64),), dynamic_shapes=(batch,)), path)
