"""`embedx.search` on the sample: the neighbours of each image of val are those of a brute force by numpy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import embedx
from embedx import sample
from embedx.data.decoding.images import ImageDecoder
from embedx.errors import ConfigError, InputError, StoreError
from tests.models.backbones.text_image import save_transformers
from tests.store.builders import build_store, write_features

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS: dict[str, Any] = {"backbone": sample.BACKBONE, "weights": "sample", "image_size": 64, "threads": 1}
COLUMNS = ["split", "key", "path", "group", "target"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> embedx.Store:
    out = tmp_path_factory.mktemp("stores") / "store"
    return embedx.extract(out=out, group_key="class", workers=0, progress=False, layer="stage3", pool="avg", **SETTINGS)


def brute_force(store: embedx.Store, query: Any, k: int, **options: Any) -> list[tuple[Any, ...]]:
    """The k nearest rows of the store, as numpy finds them: split, key, path, group, target and similarity."""
    rows = []
    for split in store.splits:
        loaded = store.load(split, **options)
        a, b = loaded.embeddings.astype(np.float64), np.asarray(query, np.float64)
        values = a @ b / np.linalg.norm(a, axis=1) / np.linalg.norm(b)
        inputs = loaded.table.select(COLUMNS).to_pylist()
        rows += [(*row.values(), value) for row, value in zip(inputs, values, strict=True)]
    return sorted(rows, key=lambda row: -row[-1])[:k]


def check(answer: Any, expected: list[tuple[Any, ...]], allowed: float = 1e-12) -> None:
    found = [tuple(getattr(each, name) for name in (*COLUMNS, "similarity")) for each in answer.neighbours]
    assert [row[:-1] for row in found] == [row[:-1] for row in expected]
    assert np.allclose([row[-1] for row in found], [row[-1] for row in expected], rtol=0, atol=allowed)


def test_the_neighbours_of_each_image_of_val(store: embedx.Store) -> None:
    """By images, by rows and by vectors: the same, as the images are embedded to the bit."""
    val = store.load("val")
    keys, paths = val.table["key"].to_pylist(), val.table["path"].to_pylist()
    of_images = embedx.search(store, paths, k=10)
    of_vectors = embedx.search(store, val.embeddings, k=10)
    of_rows = embedx.search(store, rows=[f"val:{key}" for key in keys], k=10)
    assert len(of_images.answers) == len(of_vectors.answers) == len(of_rows.answers) == 80
    assert [answer.query for answer in of_images.answers] == paths
    for place, query in enumerate(val.embeddings):
        expected = brute_force(store, query, 11)
        check(of_images.answers[place], expected[:10])
        check(of_vectors.answers[place], expected[:10])
        check(of_rows.answers[place], [row for row in expected if row[:2] != ("val", keys[place])][:10])
    assert (of_images.rows, of_images.name, of_images.store) == (304, "embeddings", store.path)
    told = json.loads(json.dumps(of_rows.to_json()))
    assert (told["store"], told["rows"], told["recall"], len(told["answers"])) == (str(store.path), 304, None, 80)
    assert told["answers"][3]["query"] == f"val:{keys[3]}"
    assert told["answers"][3]["neighbours"][0]["key"] == of_rows.answers[3].neighbours[0].key


def test_pictures_in_memory_and_one_path(store: embedx.Store) -> None:
    path = store.load("val").table["path"][5].as_py()
    query = store.load("val").embeddings[5]
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    for images, names in (
        (Path(path), [path]),
        (np.array([path]), [path]),
        (pixels, ["images[0]"]),
        ([Image.fromarray(pixels)], ["images[0]"]),
    ):
        result = embedx.search(store, images, k=4)
        assert [answer.query for answer in result.answers] == names
        check(result.answers[0], brute_force(store, query, 4))


def test_more_than_four_paths_are_decoded_in_other_processes(
    store: embedx.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In which an image that crashes its decoder does not end this one."""
    val = store.load("val")
    paths = val.table["path"].to_pylist()[:5]

    def crash(*_: Any) -> Any:
        raise SystemExit("decoded in this process")

    monkeypatch.setattr(ImageDecoder, "decode", crash)
    found = embedx.search(store, paths, k=1)
    assert [answer.neighbours[0].path for answer in found.answers] == paths
    with pytest.raises(SystemExit):
        embedx.search(store, paths[:4], k=1)


def test_another_tensor_split_and_condition(store: embedx.Store) -> None:
    (loaded,) = (store.load("train", name="stage3"),)
    (answer,) = embedx.search(
        str(store.path),
        torch.from_numpy(loaded.embeddings[3]),
        name="stage3",
        split="train",
        where="\"group\" = 'ring'",
    ).answers
    expected = [row for row in brute_force(store, loaded.embeddings[3], 400, name="stage3") if row[0] == "train"]
    check(answer, [row for row in expected if row[3] == "ring"][:10])
    (image,) = embedx.search(store, loaded.table["path"][3].as_py(), name="stage3", k=1).answers
    check(image, brute_force(store, loaded.embeddings[3], 1, name="stage3"))


def test_a_text_finds_the_images_that_the_model_s_own_library_finds(tmp_path: Path, photos: Path) -> None:
    save_transformers(tmp_path / "model", "clip")
    (tmp_path / "images").mkdir()
    for name in ("astronaut.png", "coffee.png", "rocket.jpg", "chelsea.png"):
        shutil.copy(photos / name, tmp_path / "images")
    store = embedx.extract(
        tmp_path / "images", backbone=f"hf:{tmp_path / 'model'}", out=tmp_path / "store", workers=0, progress=False
    )
    texts = ["a photo of a cat", "red rocket"]
    result = embedx.search(store, texts=texts, k=4)
    assert [answer.query for answer in result.answers] == texts
    for answer, query in zip(result.answers, embedx.embed_texts(store, texts), strict=True):
        check(answer, brute_force(store, query, 4))


def test_a_store_whose_inputs_and_backbone_are_gone_is_searched_by_vectors(tmp_path: Path) -> None:
    rows = torch.eye(3)
    store = write_features(tmp_path / "store", {"train": (rows, [0, 1, 2])})
    (answer,) = embedx.search(store, np.array([0.1, 0.9, 0.2]), k=2).answers
    assert [each.key for each in answer.neighbours] == ["key-1", "key-2"]
    with pytest.raises(ConfigError, match="does not say how it was made"):
        embedx.search(store, sample.IMAGES / "val" / "star" / "star_00.jpg")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "there is no query"),
        ({"queries": []}, "there is no query"),
        ({"queries": np.zeros((2, 4))}, "has 4 numbers, and the store's vectors have 1024"),
        ({"queries": np.ones(1024, np.int64)}, "of a float type"),
        ({"queries": np.full(1024, np.nan)}, "has NaN or infinity"),
        ({"queries": np.ones(1024), "k": 0}, "-k is 0"),
        ({"queries": np.ones(1024), "k": 2.5}, "k: 2.5 is not what it takes; give a whole number"),
        ({"queries": np.ones(1024), "k": "3"}, "k: '3' is not what it takes; give a whole number"),
        ({"queries": np.ones(1024), "split": 5}, "split: 5 is not what it takes; give a list of texts"),
        ({"queries": np.ones(1024), "where": 5}, "where: 5 is not what it takes; give a text"),
        ({"queries": np.ones(1024), "index": 5, "approximate": True}, "index: 5 is not what it takes; give a path"),
        ({"rows": 5}, "rows: 5 is not what it takes; give a text, or a list of texts"),
        ({"texts": [5]}, "texts: "),
        ({"queries": np.ones(1024), "name": "stage9"}, "unknown tensor 'stage9'"),
        ({"queries": np.ones(1024), "split": "vall"}, "unknown split 'vall'"),
        ({"queries": np.ones(1024), "where": "tarket = 1"}, "tarket"),
        ({"queries": np.ones(1024), "where": "target = "}, "--where target = "),
        ({"queries": np.ones(1024), "device": "tpu"}, "--device 'tpu'"),
        ({"queries": 3}, "images is of type int"),
        ({"rows": "val:nothing"}, "no key 'nothing'"),
        ({"texts": "a star"}, "embeds images alone"),
    ],
)
def test_what_can_not_be_searched_for(store: embedx.Store, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        embedx.search(store, **options)


def test_images_that_can_not_be_read(store: embedx.Store, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    for name in ("text.png", "gone.png"):
        with pytest.raises(InputError, match=name):
            embedx.search(store, tmp_path / name)


def test_a_store_without_rows_and_one_that_is_none(tmp_path: Path) -> None:
    empty = build_store(tmp_path / "store", 2, rejected=(0, 1))
    with pytest.raises(ConfigError, match="has no rows"):
        embedx.search(empty, np.ones(3))
    with pytest.raises(StoreError, match="is not a store"):
        embedx.search(tmp_path, np.ones(3))
