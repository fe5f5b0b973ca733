"""Small pictures of the inputs of a store, of which some are gone or changed."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image, ImageFilter

import embedx
from embedx.run.thumbnails import COLUMNS, Thumbnail, thumbnails
from embedx.vectors.vector_rows import open_rows
from tests.store.builders import build_store, write_features

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = "from torch import nn\ndef build():\n    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())\n"
SETTINGS: dict[str, Any] = {"image_size": 32, "mean": "0.5", "std": "0.5", "progress": False, "workers": 0}


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "thumbnail_model.py").write_text(TINY)
    monkeypatch.syspath_prepend(tmp_path)
    return "thumbnail_model:build"


def pictures_of(store: embedx.Store, pixels: int = 96) -> dict[str, Thumbnail]:
    rows = open_rows(store, columns=COLUMNS)
    found = list(thumbnails(store, rows.table, pixels))
    return dict(zip(rows.table["key"].to_pylist(), found, strict=True))


def opened(thumbnail: Thumbnail) -> Image.Image:
    assert thumbnail.fault is None
    return Image.open(io.BytesIO(thumbnail.data or b""))


def test_pictures_look_like_their_images(tmp_path: Path, photos: Path, build: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("astronaut.png", "coffee.png", "rocket.jpg"):
        shutil.copy(photos / name, folder)
    coffee = Image.open(photos / "coffee.png").convert("RGB")
    coffee.filter(ImageFilter.GaussianBlur(8)).save(folder / "blurred.png")
    coffee.point(lambda level: level // 16).save(folder / "dark.png")
    coffee.resize((20, 13)).save(folder / "tiny.png")
    coffee.crop((0, 0, 600, 40)).save(folder / "long.png")
    turned = Image.Exif()
    turned[274] = 6
    coffee.resize((6000, 4000)).save(folder / "turned.jpg", exif=turned)
    found = pictures_of(embedx.extract(folder, backbone=build, out=tmp_path / "store", **SETTINGS))
    for name in ("astronaut.png", "coffee.png", "rocket.jpg", "blurred.png", "dark.png", "tiny.png", "long.png"):
        image = Image.open(folder / name).convert("RGB")
        picture = opened(found[name])
        assert (found[name].width, found[name].height) == image.size
        assert max(picture.size) == min(96, max(image.size))
        shown = np.asarray(image.resize(picture.size, Image.Resampling.BOX), float)
        assert np.abs(np.asarray(picture.convert("RGB"), float) - shown).mean() < 12
        assert abs(found[name].brightness - np.asarray(image.convert("L")).mean() / 255) < 0.01
    assert (found["turned.jpg"].width, found["turned.jpg"].height) == (4000, 6000)
    assert opened(found["turned.jpg"]).size == (64, 96)
    assert found["blurred.png"].sharpness < found["coffee.png"].sharpness / 20
    assert sum(len(picture.data or b"") for picture in found.values()) < 8 * 6_000


def test_inputs_that_are_gone_or_changed_give_no_picture(tmp_path: Path, build: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(40):
        Image.new("RGB", (40, 30), (number * 5, 100, 50)).save(folder / f"{number:02}.png")
    store = embedx.extract(folder, backbone=build, out=tmp_path / "store", **SETTINGS)
    (folder / "03.png").unlink()
    time = os.stat(folder / "20.png").st_mtime_ns
    Image.new("RGB", (40, 30), (0, 0, 250)).save(folder / "20.png")
    os.utime(folder / "20.png", ns=(time, time))
    found = pictures_of(store)
    assert [name for name, picture in found.items() if picture.data is None] == ["03.png", "20.png"]
    assert found["03.png"].fault == "can't be read: No such file or directory"
    assert found["20.png"].fault == "the file has changed since"
    for number in (0, 2, 4, 19, 21, 39):  # each is its own row's
        red, green, blue = opened(found[f"{number:02}.png"]).convert("RGB").getpixel((20, 15))  # type: ignore[misc]
        assert abs(red - number * 5) < 4 and abs(green - 100) < 4 and abs(blue - 50) < 4
    shutil.rmtree(folder)
    assert all(picture.data is None for picture in pictures_of(store).values())


def test_inputs_in_a_tar(tmp_path: Path, photos: Path, build: str) -> None:
    with tarfile.open(tmp_path / "inputs.tar", "w") as tar:
        for name in ("coffee.png", "rocket.jpg"):
            tar.add(photos / name, name)
    store = embedx.extract(tmp_path / "inputs.tar", backbone=build, out=tmp_path / "store", **SETTINGS)
    found = pictures_of(store, pixels=64)
    assert [opened(picture).size for picture in found.values()] == [(64, 43), (64, 43)]


def test_a_store_that_does_not_say_how_it_was_made(tmp_path: Path) -> None:
    store = embedx.open(build_store(tmp_path / "store"))
    assert all(picture.data is None and picture.fault for picture in pictures_of(store).values())


def test_rows_without_a_path_beside_others(tmp_path: Path) -> None:
    store = embedx.open(write_features(tmp_path / "store", {"train": (torch.ones(3, 2), [0, 1, 2])}))
    rows = open_rows(store, columns=COLUMNS).table
    rows = rows.set_column(rows.column_names.index("path"), "path", pa.array([None, "/nowhere/1.png", None]))
    faults = [picture.fault for picture in thumbnails(store, rows)]
    assert faults[0] == faults[2] == "the store has no path of it" and faults[1] != faults[0]


def test_no_rows(tmp_path: Path) -> None:
    store = embedx.open(build_store(tmp_path / "store"))
    assert list(thumbnails(store, open_rows(store, columns=COLUMNS).table.slice(0, 0))) == []
