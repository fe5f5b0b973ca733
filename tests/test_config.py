from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedx.config import ExtractConfig
from embedx.errors import ConfigError
from embedx.recipe import Preprocessing, canonical_json, fingerprint
from embedx.values import parse_channels, parse_resize, parse_size, rows_per_unit


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), (4096, 4096), ("128MiB", 128 * 1024**2), ("1.5GB", 1_500_000_000), ("2 kb", 2000), ("64KiB", 65536)],
)
def test_sizes_are_read(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "0", "1.2.3", "12 parsecs", "0.1"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("value", "read"), [("232", 232), (232, 232), ("240x320", (240, 320)), ([240, 320], (240, 320)), ([232], 232)]
)
def test_what_is_resized_to_is_read(value: Any, read: Any) -> None:
    assert parse_resize(value) == read


@pytest.mark.parametrize("value", ["", "0", "x240", "240x", "240x320x3", "-1", [], [1, 2, 3], [0, 2], [16.5, 3], 16.5])
def test_what_can_not_be_resized_to_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="write 232 for the shorter side, or 240x320"):
        parse_resize(value)


@pytest.mark.parametrize("value", ["0.5, 0.25,0", [0.5, 0.25, 0]])
def test_three_numbers_are_read(value: Any) -> None:
    assert parse_channels(value) == (0.5, 0.25, 0.0)


@pytest.mark.parametrize("value", ["0.5", 0.5, "127.5/255", [0.5], ["1/2"], "1/2, 0.5,127.5/255", ["1/2", 0.5, 0.5]])
def test_one_number_is_that_of_all_channels_and_may_be_a_fraction(value: Any) -> None:
    assert parse_channels(value) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    "value", ["", "1,2", "1,2,3,4", "a,b,c", [1, 2], "1/0", "/2", "1/", "1/2/3", "127 255", [], [None], None, {}]
)
def test_what_are_not_three_numbers_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="is not three numbers; write them like"):
        parse_channels(value)


@given(st.integers(1, 2**34), st.integers(1, 2**20), st.integers(1, 2**12))
def test_a_unit_is_whole_batches_of_about_the_shard_size(shard_size: int, row_bytes: int, batch_size: int) -> None:
    count = rows_per_unit(shard_size, row_bytes, batch_size)
    assert count % batch_size == 0
    assert count >= batch_size
    assert count == batch_size or count * row_bytes <= shard_size
    assert (count + batch_size) * row_bytes > shard_size


def test_all_faults_of_the_preprocessing_are_reported_at_once(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"image_size": 64, "crop": 0, "mean": (123.7, 0.5, 0.5), "std": (1.0, 0.0, 1.0)}
    faults = ExtractConfig(backbone="resnet50", out=tmp_path, **settings).faults()
    assert len(faults) == 4
    for part in ("--crop is 0", "--image-size and --crop", "--mean is 123.7,0.5,0.5", "--std is 1,0,1"):
        assert any(part in fault for fault in faults), part


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = ExtractConfig(
        backbone="resnet50",
        out=tmp_path / "file" / "store",
        batch_size=0,
        workers=-1,
        checkpoint=str(tmp_path / "nothing.pth"),
        weights="random",
        layer=("a", "a"),
    )
    with pytest.raises(ConfigError) as caught:
        config.validate()
    assert len(caught.value.faults) == 6
    for part in ("--batch-size is 0", "--workers is -1", "give one of them", "no such file", "twice", "not a folder"):
        assert part in str(caught.value)


def test_good_settings_have_no_faults(tmp_path: Path) -> None:
    ExtractConfig(backbone="resnet50", out=tmp_path / "new" / "store").validate()


def test_settings_are_read_back_as_they_were_stated(tmp_path: Path) -> None:
    config = ExtractConfig(
        backbone="resnet50",
        out=tmp_path,
        data=("a", "b"),
        checkpoint=str(tmp_path / "it.pth"),
        resize=(3, 4),
        mean=(0.1, 0, 1),
    )
    assert ExtractConfig.from_json(config.to_json()) == config
    assert ExtractConfig.from_json({"backbone": "resnet50", "out": "store", "of_later": 1}).out == Path("store")
    for settings in ({"out": "store"}, {"backbone": "resnet50", "out": 3}):
        with pytest.raises(ConfigError, match="are not those of an extraction"):
            ExtractConfig.from_json(settings)


def test_python_gives_paths_as_text_and_one_source_as_one_text() -> None:
    given: dict[str, Any] = {"out": "x", "data": "photos", "checkpoint": Path("w.pth"), "layer": ["layer1", "layer2"]}
    config = ExtractConfig(backbone="resnet50", **given)
    assert (config.out, config.checkpoint) == (Path("x"), "w.pth")
    assert (config.data, config.layer, config.backbone_arg) == (("photos",), ("layer1", "layer2"), ())
    for data in (Path("photos"), [Path("photos")]):
        config = ExtractConfig(backbone="resnet50", **given | {"data": data})
        assert config.data == ("photos",) and json.dumps(config.to_json())


def test_every_setting_has_help() -> None:
    assert all(field.metadata["help"].endswith((".", "`")) for field in dataclasses.fields(ExtractConfig))


def test_another_image_size_keeps_the_share_that_is_cropped() -> None:
    steps = Preprocessing(232, 224, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert steps.with_image_size(None) == steps
    assert (steps.with_image_size(448).resize, steps.with_image_size(448).crop) == (464, 448)


def test_a_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical_json({"b": 1, "a": [1.5, None]}) == '{"a":[1.5,null],"b":1}'
    assert fingerprint({"b": 1, "a": 2}) == fingerprint({"a": 2, "b": 1}) != fingerprint({"a": 2, "b": 2})


@pytest.mark.parametrize("name", ["batch_size", "workers", "threads", "image_size", "crop"])
def test_numbers_beyond_all_machines_are_faults(tmp_path: Path, name: str) -> None:
    settings: dict[str, Any] = {name: 10**40}
    (fault,) = ExtractConfig(backbone="resnet18", out=tmp_path, **settings).faults()
    assert fault == f"--{name.replace('_', '-')} is 1e+40; give a whole number of at most 2147483647"
