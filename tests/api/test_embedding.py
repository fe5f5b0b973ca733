"""Images in memory give the rows of a store to the bit, or by settings those that an extraction would store."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torchvision.models import shufflenet_v2_x0_5

import embedx
from embedx import sample
from embedx.store.format.manifest import Manifest
from tests.runs import digests
from tests.store.builders import build_store

PLAIN: dict[str, Any] = {"backbone": "shufflenet_v2_x0_5", "weights": "sample", "image_size": 64, "batch_size": 4}
RICH: dict[str, Any] = PLAIN | {
    "layer": ["conv5", "stage3"],
    "pool": "max",
    "normalize": True,
    "dtype": "float16",
    "batch_size": 3,
    "pixels": "background=white",
    "threads": 1,
}
CHANNELS_FIRST = np.zeros((2, 3, 40, 40), np.uint8)


def in_memory(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several formats, modes and orientations, each of another size."""
    folder = tmp_path_factory.mktemp("photos")
    drawn = [in_memory(path) for path in sorted((sample.IMAGES / "val" / "star").iterdir())]
    for number, (name, mode, turn) in enumerate(
        [
            *(("a.png", "RGB", 6), ("b.png", "L", 1), ("c.png", "RGBA", 1), ("d.png", "P", 1), ("e.jpg", "RGB", 3)),
            *(("f.tif", "RGB", 8), ("g.jpg", "CMYK", 1), ("h.webp", "RGB", 5), ("i.jpg", "L", 1)),
        ]
    ):
        image = drawn[number].convert(mode).resize((90 + number, 80))
        if mode == "RGBA":
            image.putalpha(Image.linear_gradient("L").resize(image.size))
        exif = Image.Exif()
        exif[0x0112] = turn
        image.save(folder / name, exif=exif)
    return folder


@pytest.fixture(scope="module", params=[PLAIN, RICH], ids=["plain", "rich"])
def made(request: pytest.FixtureRequest, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A store of these images, and the settings by which it was made."""
    out = tmp_path_factory.mktemp("made") / "store"
    return embedx.extract(photos, out=out, workers=0, progress=False, **request.param), request.param


@pytest.fixture
def opened(photos: Path) -> Iterator[list[Image.Image]]:
    images: list[Image.Image] = [Image.open(path) for path in sorted(photos.iterdir())]
    yield images
    for image in images:
        image.close()


def arrays(images: list[Image.Image], background: bool) -> list[np.ndarray[Any, Any]]:
    """The pixels as Pillow turns and converts them."""
    upright = [ImageOps.exif_transpose(image) for image in images]
    if background:
        white = [Image.new("RGBA", image.size, "white") for image in upright]
        upright = [Image.alpha_composite(w, i.convert("RGBA")) for w, i in zip(white, upright, strict=True)]
    return [np.asarray(image.convert("RGB")) for image in upright]


def test_paths_pictures_and_arrays_give_the_store_s_rows_to_the_bit(
    made: tuple[Any, Any], photos: Path, opened: list[Image.Image]
) -> None:
    store, settings = made
    names = ["embeddings", *settings.get("layer", ())]
    rows = {name: store.load("all", name=name).embeddings for name in names}
    assert store.load("all").keys == [path.name for path in sorted(photos.iterdir())]
    pixels = arrays(opened, background="pixels" in settings)
    kinds: dict[str, Any] = {
        "paths": sorted(photos.iterdir()),
        "texts": [str(path) for path in sorted(photos.iterdir())],
        "pictures": opened,
        "arrays": pixels,
        "tensors": [torch.tensor(each) for each in pixels],
    }
    before = digests(store.path)
    with embedx.Embedder(store.path) as embed:
        for kind, images in kinds.items():
            for name in names:
                found = embed(images, name=name)
                assert found.dtype == rows[name].dtype and np.array_equal(found, rows[name]), (kind, name)
        backwards = embed(opened[::-1])
        assert np.array_equal(backwards[::-1], rows["embeddings"])
        assert np.array_equal(embed(opened[5]), rows["embeddings"][5:6])
        assert embed([]).shape == (0, *rows["embeddings"].shape[1:])
    assert np.array_equal(embedx.embed(kinds["paths"], store, workers=1), rows["embeddings"])
    assert np.array_equal(embedx.embed(opened, settings), rows["embeddings"])
    config = embedx.ExtractConfig(**settings, out=store.path)  # whose store is not looked at
    assert torch.equal(embedx.embed(opened, config, framework="torch"), torch.from_numpy(rows["embeddings"]))
    assert digests(store.path) == before


def test_an_array_of_many_images_is_one_image_a_row(made: tuple[Any, Any]) -> None:
    store, _ = made
    many = np.random.default_rng(3).integers(0, 255, (5, 70, 80, 3), np.uint8)
    many.flags.writeable = False
    with embedx.Embedder(store) as embed, warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = embed(many)
        assert np.array_equal(rows, embed(list(many))) and np.array_equal(rows, embed(torch.tensor(many)))
        assert np.array_equal(rows[::-1], embed(many[::-1])) and np.array_equal(rows[2:3], embed(many[2]))


def test_another_batch_size_gives_close_numbers(made: tuple[Any, Any], opened: list[Image.Image]) -> None:
    store, _ = made
    rows = store.load("all").embeddings
    assert np.allclose(embedx.embed(opened[0], store, batch_size=1), rows[:1], rtol=1e-2, atol=1e-3)


def test_deep_pixels_in_memory_are_judged_as_those_of_files(photos: Path, tmp_path: Path) -> None:
    deep = Image.fromarray(np.random.default_rng(4).integers(0, 4096, (70, 70), np.uint16))
    deep.save(tmp_path / "deep.png")
    with embedx.Embedder(PLAIN) as embed:
        for image in (deep, tmp_path / "deep.png"):
            with pytest.raises(embedx.InputError, match=r"images\[0\].*: .*bits"):
                embed([image])
    with embedx.Embedder(PLAIN | {"pixels": "bits=12"}) as embed:
        assert np.array_equal(embed([deep]), embed([tmp_path / "deep.png"]))


def test_the_model_is_loaded_once(tmp_path: Path, opened: list[Image.Image]) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file(shufflenet_v2_x0_5().state_dict(), weights)
    settings = {"backbone": "shufflenet_v2_x0_5", "checkpoint": weights, "image_size": 32, "batch_size": 2}
    threads = torch.get_num_threads()
    with embedx.Embedder(settings | {"threads": 1}) as embed:
        first = embed(opened[:3])
        weights.unlink()
        assert np.array_equal(embed(opened[:3]), first)
        assert torch.get_num_threads() == threads
    with pytest.raises(embedx.ConfigError, match="this Embedder is closed"):
        embed(opened)


def closed(path: Path) -> Image.Image:
    """An image whose file is closed before its pixels are read."""
    with Image.open(path) as image:
        return image


def test_an_image_that_gives_no_row_is_named_by_its_position(photos: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes((photos / "e.jpg").read_bytes()[:-400])
    good = photos / "a.png"
    with embedx.Embedder(PLAIN) as embed, contextlib.ExitStack() as stack:
        for images, message in (
            ([good, good, damaged], rf"images\[2\] \({damaged}\): .*"),
            ([tmp_path / "nowhere.jpg"], r"images\[0\] .*nowhere.jpg\): can't be read: No such file"),
            ([in_memory(good), stack.enter_context(Image.open(damaged))], r"images\[1\]: can't be decoded"),
            (closed(good), r"images\[0\]: can't be decoded: \w.* closed"),
            (Image.new("RGB", (0, 5)), r"images\[0\]: it has no pixels: 0x5"),
        ):
            with pytest.raises(embedx.InputError, match=message):
                embed(images)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (CHANNELS_FIRST, r"images\[0\] has the shape \[3, 40, 40\] and the type uint8; an image is \[H, W, 3\]"),
        (np.zeros((2, 40, 40, 3), np.float32), "the type float32; an image is"),
        (torch.zeros(2, 40, 40, 3), "the type float32; an image is"),
        ([sample.IMAGES, CHANNELS_FIRST.transpose(0, 2, 3, 1)[0]], "images has paths and pictures"),
        ([b"bytes"], r"images\[0\] is of type bytes; give paths, Pillow's images or arrays"),
        (7, "images is of type int; give paths"),
        (b"\xff\xd8", r"images is of type bytes; .* opened by PIL.Image.open\(io.BytesIO"),
        (memoryview(bytes(3)), "images is of type memoryview; give paths"),
        (np.array(7), r"images\[0\] has the shape \[\]"),
        (np.zeros((40, 50), np.uint8), r"images\[0\] has the shape \[40, 50\] and the type uint8; an image is"),
        (torch.empty(1, 40, 40, 3, dtype=torch.uint8, device="meta"), r"images\[0\] is on the meta device"),
        ([torch.zeros(4, 4, 3, dtype=torch.uint8).to_sparse()], r"images\[0\] is of the layout torch.sparse_coo"),
    ],
)
def test_images_of_another_kind_are_refused(images: Any, message: str, embed: embedx.Embedder) -> None:
    with pytest.raises(embedx.ConfigError, match=message):
        embed(images)


@pytest.fixture(scope="module")
def embed() -> Iterator[embedx.Embedder]:
    with embedx.Embedder(PLAIN) as embedder:
        yield embedder


def test_an_unknown_tensor_is_refused(embed: embedx.Embedder) -> None:
    with pytest.raises(embedx.ConfigError, match="unknown tensor 'layer9'; valid: embeddings"):
        embed([], name="layer9")


def test_settings_are_checked_as_an_extraction_s(tmp_path: Path) -> None:
    with pytest.raises(embedx.ConfigError, match="unknown setting 'bakbone'"):
        embedx.Embedder({"bakbone": "resnet18"})
    with pytest.raises(embedx.ConfigError, match="--batch-size is 0"):
        embedx.Embedder(PLAIN | {"batch_size": 0})
    with pytest.raises(embedx.ConfigError, match="there is no backbone here that takes images"):
        embedx.Embedder({"backbone": "none"})
    with pytest.raises(embedx.NotAStoreError, match="resnet18 is not a store"):
        embedx.Embedder("resnet18")


def test_a_recipe_that_can_t_be_met_is_refused(made: tuple[Any, Any], tmp_path: Path) -> None:
    store, _ = made
    with pytest.raises(embedx.ConfigError, match="does not say how it was made"):
        embedx.Embedder(build_store(tmp_path / "writer"))
    copy = shutil.copytree(store.path, tmp_path / "copy")
    manifest = Manifest.read(copy)
    dataclasses.replace(manifest, recipe=manifest.recipe.replacing(weights={"sha256": "0" * 64})).write(copy)
    with pytest.raises(embedx.StoreMismatchError, match="another recipe than its settings give now"):
        embedx.Embedder(copy)
    if not torch.cuda.is_available():
        dataclasses.replace(manifest, recipe=manifest.recipe.replacing(device="cuda", precision="tf32")).write(copy)
        with pytest.raises(embedx.ConfigError, match='was made on cuda, which this machine lacks; give device="cpu"'):
            embedx.Embedder(copy)
        image = sample.IMAGES / "val" / "star" / "star_00.jpg"
        assert np.array_equal(embedx.embed(image, copy, device="cpu"), embedx.embed(image, store))


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (None, {"batch_size": 0}, "--batch-size is 0; give a whole number of at least 1"),
        (None, {"batch_size": "x"}, "batch_size: 'x' is not a number of images"),
        (None, {"batch_size": "auto"}, 'batch_size="auto" is for settings; give a number'),
        (None, {"batch_size": 10**9}, "--batch-size 1000000000: the inputs of a batch take"),
        (None, {"workers": -1}, "--workers is -1"),
        (PLAIN, {"workers": 1.5}, "workers: 1.5 is not what it takes; give a whole number"),
        (PLAIN, {"device": torch.device("cpu")}, r"device: device\(type='cpu'\) is not what it takes; give a text"),
        (PLAIN, {"framework": "jax"}, "framework is 'jax'; give 'numpy' or 'torch'"),
        ([PLAIN], {}, "recipe is of type list; give a store, its path, or settings"),
        ("a\0b", {}, r"'a\\x00b' is not a store: .*no path is empty, or has a NUL byte"),
    ],
)
def test_options_that_can_t_be_are_refused(
    made: tuple[Any, Any], recipe: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((embedx.ConfigError, embedx.NotAStoreError), match=message):
        embedx.Embedder(made[0] if recipe is None else recipe, **options)


def test_code_that_a_store_names_is_run_only_if_it_is_trusted(made: tuple[Any, Any], tmp_path: Path) -> None:
    copy = shutil.copytree(made[0].path, tmp_path / "copy")
    manifest = Manifest.read(copy)
    dataclasses.replace(manifest, settings=manifest.settings.replacing(backbone="mine:build")).write(copy)
    with pytest.raises(embedx.ConfigError, match=r"mine:build; loading it runs code .*trust=True"):
        embedx.Embedder(copy)
