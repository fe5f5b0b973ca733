"""The main job, end to end, in this process: real images, real workers, the real writer process."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as transforms

import embedx
from embedx import ExtractConfig, sample
from embedx.errors import ConfigError, InputError, StoreMismatchError
from embedx.heartbeat import Heartbeat
from embedx.run.extract import extract
from embedx.run.prepare import prepare
from embedx.run.recompute import recompute
from embedx.store.reading.verify import verify
from tests.runs import digests, written

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
FORMATS: dict[str, dict[str, Any]] = {"jpg": {"quality": 92}, "png": {}, "webp": {"quality": 90}, "bmp": {}, "tif": {}}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real photographs in mixed sizes, orientations and formats: the one thing in all tests that is not drawn."""
    root = tmp_path_factory.mktemp("photographs")
    names = ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "retina.jpg", "camera.png"]
    for number, name in enumerate(names):
        image = Image.open(PHOTOGRAPHS / name).convert("RGB")
        for variant, (suffix, options) in enumerate(FORMATS.items()):
            scale = (1.0, 0.6, 0.9)[(number + variant) % 3]
            resized = image.resize((int(image.width * scale), int(image.height * scale * (1 - 0.1 * variant))))
            (root / name[:3]).mkdir(exist_ok=True)
            resized.save(root / name[:3] / f"{variant}.{suffix}", **options)
    Image.open(PHOTOGRAPHS / "rocket.jpg").convert("CMYK").save(root / "roc" / "cmyk.jpg", quality=95)
    Image.open(PHOTOGRAPHS / "coffee.png").quantize(64).save(root / "cof" / "palette.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(PHOTOGRAPHS / "chelsea.png").save(root / "che" / "turned.jpg", exif=turned, quality=95)
    return root


@pytest.fixture(scope="module")
def trained() -> models.ShuffleNetV2:
    """The bundled checkpoint in torchvision's own model, its classifier replaced."""
    model = models.shufflenet_v2_x0_5()
    model.fc = nn.Identity()
    model.load_state_dict(load_file(sample.CHECKPOINT))
    return model.eval()


def config(out: Path, **settings: Any) -> ExtractConfig:
    defaults: dict[str, Any] = {
        "backbone": sample.BACKBONE,
        "weights": "sample",
        "batch_size": 8,
        "workers": 0,
        "out": out,
    }
    return ExtractConfig(**defaults | settings)


def same_pixels(path: Path) -> Tensor:
    """[3, 224, 224] uint8: the steps of the preset on the pixels that torchvision.io decodes."""
    try:
        pixels = decode_image(str(path), mode=ImageReadMode.RGB, apply_exif_orientation=True)
    except RuntimeError:
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
    return transforms.center_crop(transforms.resize(pixels, [256], antialias=True), [224, 224])


def forward(model: nn.Module, images: Tensor) -> Tensor:
    """A plain forward pass, one image at a time: [N, 3, H, W] normalised to [N, D]."""
    with torch.inference_mode():
        return torch.cat([model(image.unsqueeze(0)) for image in images])


def normalised(pixels: Tensor) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return nn.functional.cosine_similarity(one, other)


def test_rows_equal_a_plain_forward_pass_of_torchvision(
    tmp_path: Path, photographs: Path, trained: models.ShuffleNetV2
) -> None:
    extract(config(tmp_path / "store", data=(str(photographs),)))
    rows = embedx.open(tmp_path / "store").load("all", framework="torch")
    assert len(rows) == len(list(photographs.rglob("*.*"))) == 33
    files = [photographs / key for key in rows.keys]

    reference = forward(
        trained, torch.stack([normalised(same_pixels(file)) for file in files if "cmyk" not in str(file)])
    )
    kept = torch.tensor(["cmyk" not in key for key in rows.keys])
    assert (rows.embeddings[kept] - reference).abs().max() <= 1e-5 * reference.abs().max()

    preset = models.get_model_weights(sample.BACKBONE).DEFAULT.transforms()
    from PIL import ImageOps

    with_pillow = torch.stack([preset(ImageOps.exif_transpose(Image.open(file)).convert("RGB")) for file in files])
    by_pillow = forward(trained, with_pillow)
    assert cosine(rows.embeddings, by_pillow).min() >= 0.999
    assert cosine(rows.embeddings, by_pillow.roll(7, 0)).median() < 0.99  # other images do differ


@pytest.mark.parametrize("backbone", ["mobilenet_v3_small", pytest.param("vit_b_32", marks=pytest.mark.soak)])
def test_other_architectures_agree_with_torchvision_too(tmp_path: Path, photographs: Path, backbone: str) -> None:
    torch.manual_seed(3)
    model = models.get_model(backbone)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    settings: dict[str, Any] = {"backbone": backbone, "weights": "DEFAULT", "checkpoint": tmp_path / "weights.pth"}
    extract(config(tmp_path / "store", data=(str(photographs / "ast"),), **settings))
    rows = embedx.open(tmp_path / "store").load("all", framework="torch")
    head = model.classifier if backbone == "mobilenet_v3_small" else model.heads
    head[-1] = nn.Identity()
    pixels = torch.stack([normalised(same_pixels(photographs / "ast" / key)) for key in rows.keys])
    reference = forward(model.eval(), pixels)
    assert (rows.embeddings - reference).abs().max() <= 1e-5 * reference.abs().max()


def test_a_run_tells_how_the_checkpoint_was_matched(
    tmp_path: Path, photographs: Path, trained: models.ShuffleNetV2
) -> None:
    torch.save({"state_dict": {f"module.{name}": it for name, it in trained.state_dict().items()}}, tmp_path / "it.pth")
    console = Console(file=io.StringIO(), width=40)
    settings = {"weights": "DEFAULT", "checkpoint": tmp_path / "it.pth", "data": (str(photographs / "ast"),)}
    extract(config(tmp_path / "store", **settings), Heartbeat(console))
    matched = f"{len(trained.state_dict())} tensors matched, prefix 'state_dict.module.' stripped, none ignored\n"
    assert f"{tmp_path}/it.pth: {matched}" in written(console)


def test_the_same_bytes_with_any_number_of_workers(tmp_path: Path, photographs: Path) -> None:
    """Units of 8 rows, so that several are written, the last of them short."""
    settings: dict[str, Any] = {"data": (str(photographs),), "group_key": "class", "shard_size": 8 * 4104}
    for workers in (0, 1, 2):
        extract(config(tmp_path / str(workers), workers=workers, **settings))
    stores = [digests(tmp_path / str(workers)) for workers in (0, 1, 2)]
    assert len([name for name in stores[0] if name.endswith(".parquet")]) == 5
    assert stores[0] == stores[1] == stores[2]


def test_an_unreadable_input_is_rejected_and_moves_no_other_row(tmp_path: Path, photographs: Path) -> None:
    spoilt = tmp_path / "spoilt"
    shutil.copytree(photographs, spoilt)
    (spoilt / "ast" / "00.jpg").write_text("not an image")
    whole = (spoilt / "cof" / "0.jpg").read_bytes()
    (spoilt / "cof" / "0.jpg").write_bytes(whole[: len(whole) // 2])
    extract(config(tmp_path / "whole", data=(str(photographs),)))
    summary = extract(config(tmp_path / "store", data=(str(spoilt),)))
    assert (summary.rows, summary.rejected) == (32, 2)
    assert list(verify(tmp_path / "store")) == []
    whole_rows = embedx.open(tmp_path / "whole").load("all")
    rows = embedx.open(tmp_path / "store").load("all")
    expected = dict(zip(whole_rows.keys, whole_rows.embeddings, strict=True))
    assert set(expected) - set(rows.keys) == {"cof/0.jpg"}
    for key, embedding in zip(rows.keys, rows.embeddings, strict=True):
        assert np.array_equal(embedding, expected[key]), key
    index = {row["key"]: row for row in embedx.open(tmp_path / "store").index().to_pylist()}
    assert index["ast/00.jpg"]["reason"].startswith("not an image of a known format")
    assert "truncated" in index["cof/0.jpg"]["reason"]
    assert index["cof/0.jpg"]["bytes"] == len(whole) // 2

    with pytest.raises(InputError, match=r"ast/00\.jpg: not an image"):
        extract(config(tmp_path / "strict", data=(str(spoilt),), on_error="fail"))
    assert not list((tmp_path / "strict").rglob("*.parquet"))


def test_groups_targets_and_hashes_tie_every_row_to_its_file(tmp_path: Path) -> None:
    import hashlib

    summary = extract(config(tmp_path / "store", group_key="class"))
    store = embedx.open(summary.manifest.parent)
    assert store.splits == ["train", "val"] and summary.rejected == 0
    classes = list(store.manifest.plan.classes or ())
    assert classes == sorted(path.name for path in (sample.IMAGES / "train").iterdir())
    for split in store.splits:
        assert store.groups(split) == classes
        for name in classes:
            files = sorted(path.name for path in (sample.IMAGES / split / name).iterdir())
            rows = store.load(split, name)
            assert rows.keys == [f"{name}/{file}" for file in files]
            assert set(rows.targets.tolist()) == {classes.index(name)}
    for row in store.index("val").to_pylist():
        data = (sample.IMAGES / "val" / row["key"]).read_bytes()
        assert (row["sha256"], row["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))


def test_a_second_run_is_up_to_date_and_a_missing_unit_comes_back_with_the_same_bytes(
    tmp_path: Path, photographs: Path
) -> None:
    settings = config(tmp_path / "store", data=(str(photographs),), shard_size=8 * 4104)
    first = extract(settings)
    before = digests(tmp_path / "store")
    again = extract(settings)
    assert again.up_to_date and not first.up_to_date and again.totals == first.totals
    for name in ("index/all-00001.parquet", "all/shard-00003.safetensors", "index/all-00003.parquet"):
        (tmp_path / "store" / name).unlink()
    extract(settings)
    assert digests(tmp_path / "store") == before and list(verify(tmp_path / "store")) == []


def test_another_recipe_or_changed_inputs_are_refused_until_overwrite(tmp_path: Path, photographs: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(photographs / "ast", images)
    settings: dict[str, Any] = {"data": (str(images),)}
    extract(config(tmp_path / "store", **settings))
    with pytest.raises(StoreMismatchError, match=r"recipe\.batch_size: 8 → 4"):
        extract(config(tmp_path / "store", batch_size=4, **settings))
    (images / "0.jpg").unlink()
    with pytest.raises(StoreMismatchError, match=r"1 gone \(such as '0.jpg'\), 4 unchanged"):
        extract(config(tmp_path / "store", **settings))
    assert extract(config(tmp_path / "store", overwrite=True, **settings)).rows == 4
    assert list(verify(tmp_path / "store")) == []


def test_layers_pooling_normalisation_and_stored_type(
    tmp_path: Path, photographs: Path, trained: models.ShuffleNetV2
) -> None:
    data = (str(photographs / "cof"),)
    extract(config(tmp_path / "store", data=data, layer=("stage3", "conv5"), normalize=True, dtype="bfloat16"))
    store = embedx.open(tmp_path / "store")
    rows = store.load("all", framework="torch")
    stage = store.load("all", framework="torch", name="stage3").embeddings
    assert rows.embeddings.dtype == torch.bfloat16 and rows.embeddings.shape == (6, 1024) and stage.shape == (6, 96)
    assert torch.allclose(rows.embeddings.float().norm(dim=1), torch.ones(6), atol=0.01)

    def stage3(images: Tensor) -> Tensor:
        x = trained.maxpool(trained.conv1(images))
        return nn.functional.normalize(trained.stage3(trained.stage2(x)).mean((2, 3)))

    pixels = torch.stack([normalised(same_pixels(photographs / "cof" / key)) for key in rows.keys])
    with torch.inference_mode():
        assert torch.allclose(stage.float(), stage3(pixels), atol=2e-3)
    unpooled = config(tmp_path / "maps", data=data, layer=("stage3",), pool="none")
    assert prepare(unpooled).spec.shapes == {"embeddings": (1024,), "stage3": (96, 14, 14)}


def nearest_class(store: embedx.Store) -> float:
    """Accuracy of the class of the nearest row of train, by cosine, for the rows of val."""
    train, val = (store.load(split, framework="torch") for split in ("train", "val"))
    similarity = nn.functional.normalize(val.embeddings) @ nn.functional.normalize(train.embeddings).T
    return (train.targets[similarity.argmax(1)] == val.targets).float().mean().item()


def test_neighbours_in_the_sample_s_embeddings_are_of_the_same_class(tmp_path: Path) -> None:
    accuracy = {}
    for weights in ("sample", "random"):
        extract(config(tmp_path / weights, weights=weights, batch_size=32))
        accuracy[weights] = nearest_class(embedx.open(tmp_path / weights))
    chance = 1 / len(list((sample.IMAGES / "val").iterdir()))
    assert accuracy["sample"] >= 0.95
    assert accuracy["sample"] > 2 * max(accuracy["random"], chance), (accuracy, chance)


def test_every_fault_is_reported_at_once_and_nothing_is_written(tmp_path: Path, photographs: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        extract(
            config(
                tmp_path / "store",
                backbone="resnet5",
                weights="DEFAULT",
                batch_size=0,
                device="tpu",
                data=(str(tmp_path / "nowhere"),),
            )
        )
    text = str(caught.value)
    for part in ("--batch-size is 0", "did you mean resnet50?", "there is no folder", "none of auto, cpu"):
        assert part in text
    assert not (tmp_path / "store").exists()


NOT_FINITE = """
import torch

class Big(torch.nn.Module):
    preprocessing = dict(resize=(16, 16), crop=16, interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3)

    def forward(self, images):
        return images.flatten(1) * 1e6

def build():
    return Big()
"""


def test_rows_beyond_the_stored_type_are_rejected_told_and_taken_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows between them stay the same bytes. Black images are zeros, white ones a million."""
    for number, value in enumerate((0, 255, 0, 255)):
        Image.new("RGB", (16, 16), (value,) * 3).save(tmp_path / f"{number}.png")
    (tmp_path / "too_big.py").write_text(NOT_FINITE)
    monkeypatch.syspath_prepend(tmp_path)
    settings: dict[str, Any] = {
        "backbone": "too_big:build",
        "weights": "DEFAULT",
        "data": (str(tmp_path),),
        "dtype": "float16",
    }
    out = tmp_path / "out"
    heard = io.StringIO()
    with Heartbeat(Console(file=heard, width=1000)) as heartbeat:
        summary = extract(config(out, **settings | {"batch_size": 2}), heartbeat)
    assert (summary.rows, summary.rejected) == (2, 2)
    assert "rows is finite" not in heard.getvalue()
    reasons = embedx.open(out).index("all")["reason"].to_pylist()
    beyond = (
        "beyond float16, which ends at 65504: the largest value of 'embeddings' is 1e+06 (stored as float32 it fits)"
    )
    assert reasons == [None, beyond, None, beyond]
    assert list(verify(out)) == [] and embedx.open(out).load("all").embeddings.max() == 0
    assert extract(config(out, **settings | {"batch_size": 2})).up_to_date
    with pytest.raises(InputError, match=r"1\.png: beyond float16.*--dtype float32 holds larger numbers"):
        extract(config(tmp_path / "failing", **settings, on_error="fail"))

    taken = extract(config(out, **settings | {"batch_size": 2}, allow_nonfinite=True, retry_rejected=True))
    assert (taken.rows, taken.rejected) == (4, 0)
    embeddings = embedx.open(out).load("all").embeddings
    assert np.isinf(embeddings[[1, 3]]).all() and (embeddings[[0, 2]] == 0).all()
    assert list(verify(out)) == []
    found = recompute(out, 4, trust=True)
    assert (found.rows, found.largest_difference, found.faults) == (4, 0.0, [])
    assert extract(config(out, **settings | {"batch_size": 2})).up_to_date


def test_features_that_are_not_finite_are_rejected_and_a_batch_of_them_is_told_at_once(tmp_path: Path) -> None:
    features = torch.arange(40.0).reshape(10, 4)
    features[:5, 1] = torch.nan
    features[7] = 0
    np.save(tmp_path / "features.npy", features.numpy())
    settings: dict[str, Any] = {"backbone": "none", "data": (str(tmp_path / "features.npy"),), "weights": "DEFAULT"}
    extract(config(tmp_path / "out", **settings | {"batch_size": 4}, normalize=True))
    rows = embedx.open(tmp_path / "out").index("all")
    assert [row["index"] for row in rows.to_pylist() if row["status"] == "rejected"] == [0, 1, 2, 3, 4, 7]
    assert rows["reason"][0].as_py() == "the input gave NaN: 4 of 4 values of 'embeddings' are not finite"
    assert "no unit length" in rows["reason"][7].as_py()
    kept = torch.nn.functional.normalize(features[[5, 6, 8, 9]]).numpy()
    assert np.array_equal(embedx.open(tmp_path / "out").load("all").embeddings, kept)
    np.save(tmp_path / "features.npy", features[:5].numpy())
    heard = io.StringIO()
    with Heartbeat(Console(file=heard, width=1000)) as heartbeat:
        extract(config(tmp_path / "none", **settings, normalize=True), heartbeat)
    assert heard.getvalue().count("none of the first 5 rows is finite (") == 1
