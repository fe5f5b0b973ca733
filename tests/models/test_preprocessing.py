from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import timm.data

from embedx.errors import ConfigError
from embedx.models.preprocessing import PreprocessingOptions, resolve_preprocessing
from embedx.recipe import Preprocessing

OWN = Preprocessing(232, 224, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = (0.5, 0.5, 0.5)


def settings(**given: Any) -> PreprocessingOptions:
    return PreprocessingOptions(backbone="mine", **given)


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({}, {}),
        ({"image_size": 112}, {"resize": 116, "crop": 112}),
        ({"image_size": 112, "resize": 120}, {"resize": 120, "crop": 112}),
        ({"crop": 160}, {"crop": 160}),
        ({"resize": (240, 320)}, {"resize": (240, 320)}),
        ({"mean": HALVES, "std": HALVES}, {"mean": HALVES, "std": HALVES}),
        ({"interpolation": "bicubic", "exif": False}, {"interpolation": "bicubic", "exif": False}),
    ],
)
def test_each_setting_changes_one_step(given: dict[str, Any], changed: dict[str, Any]) -> None:
    assert resolve_preprocessing(OWN, settings(**given)) == dataclasses.replace(OWN, **changed)


def test_a_preprocessing_that_nobody_knows_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="the preprocessing of mine is unknown; give --image-size and --mean"):
        resolve_preprocessing(None, settings())
    with pytest.raises(ConfigError, match=r"is unknown; give --std \(and"):
        resolve_preprocessing(None, settings(image_size=64, mean=HALVES))


@pytest.mark.parametrize("size", [{"image_size": 64}, {"crop": 64}])
def test_one_that_is_told_resizes_to_what_is_cropped_bilinearly(size: dict[str, int]) -> None:
    steps = resolve_preprocessing(None, settings(mean=HALVES, std=HALVES, **size))
    assert steps == Preprocessing(64, 64, "bilinear", HALVES, HALVES)
    more = resolve_preprocessing(None, settings(mean=HALVES, std=HALVES, resize=72, interpolation="bicubic", **size))
    assert more == Preprocessing(72, 64, "bicubic", HALVES, HALVES)


def test_a_backbone_that_takes_one_size_alone_gives_it() -> None:
    told = {"mean": HALVES, "std": HALVES}
    assert resolve_preprocessing(None, settings(**told), fixed_size=96).crop == 96
    with pytest.raises(ConfigError, match="mine takes images of 96x96, not 64x64; give --image-size 96"):
        resolve_preprocessing(None, settings(image_size=64, **told), fixed_size=96)


@pytest.mark.parametrize("share", [0.875, 0.9, 0.95, 1.0, 0.3])
@pytest.mark.parametrize("size", [224, 256, 331])
def test_the_crop_s_share_gives_timm_s_size_to_resize_to(share: float, size: int) -> None:
    resized, cropped, *_ = timm.data.create_transform((3, size, size), crop_pct=share).transforms
    steps = resolve_preprocessing(OWN, settings(image_size=size, crop_pct=share))
    assert (steps.resize, steps.crop) == (resized.size, cropped.size[0]) and steps.crop_first is None
    squashed = resolve_preprocessing(
        dataclasses.replace(OWN, resize=(232, 232)), settings(image_size=size, crop_pct=share)
    )
    resized = timm.data.create_transform((3, size, size), crop_pct=share, crop_mode="squash").transforms[0]
    assert squashed.resize == tuple(resized.size)


@pytest.mark.parametrize(
    ("given", "share"), [({}, 224 / 232), ({"crop_pct": 0.875}, 0.875), ({"resize": 256}, 224 / 256)]
)
def test_cropping_first_resizes_the_crop_s_share_to_its_size(given: dict[str, Any], share: float) -> None:
    steps = resolve_preprocessing(OWN, settings(crop_first=True, **given))
    assert steps == dataclasses.replace(OWN, resize=224, crop=224, crop_first=share)


@pytest.mark.parametrize("given", [{"resize": 200}, {"resize": (300, 200)}, {"crop": 300}])
def test_nothing_is_cut_out_of_what_is_smaller(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"resized to \d+ pixels are too small to cut \d+ out of them; give --resize"):
        resolve_preprocessing(OWN, settings(**given))
