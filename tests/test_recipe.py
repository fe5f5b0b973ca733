"""The recipe's JSON: what is as by default leaves no trace, and the reading of pixels is one text and one value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from embedx.config import ExtractConfig
from embedx.recipe import PixelOptions, Preprocessing, Recipe, parse_pixels

ALL = "bits=12,channels=0:1:2,range=0.0:1.0,background=white,color=srgb"


def recipe(pixels: str) -> dict[str, Any]:
    steps = Preprocessing(256, 224, "bilinear", (0.5,) * 3, (0.5,) * 3, pixels=parse_pixels(pixels))
    return Recipe(
        "resnet18", {}, {}, steps, (), "avg", False, "fp32", "eager", "cpu", "cpu", 32, "float32"
    ).to_json()["preprocessing"]  # fmt: skip


def test_a_reading_of_pixels_is_in_the_recipe_only_where_it_is_set() -> None:
    assert "pixels" not in recipe("")
    assert recipe("bits=12")["pixels"] == {"bits": 12}
    assert recipe(ALL)["pixels"] == {
        "bits": 12,
        "channels": [0, 1, 2],
        "range": [0.0, 1.0],
        "background": "white",
        "color": "srgb",
    }


def test_a_reading_of_pixels_has_one_spelling() -> None:
    assert str(parse_pixels(ALL)) == ALL and str(PixelOptions()) == ""
    shuffled = " range=0:1 , color=sRGB,bits=12,channels=0:1:2,background=White"
    assert parse_pixels(shuffled) == parse_pixels(ALL)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("bit=12", "'bit=12' is none of its settings, which are bits, channels, range, background, color"),
        ("bits=7", "'bits=7' can't be; write it like bits=12, from 8 to 16"),
        ("bits=many", "'bits=many' can't be"),
        ("bits", "'bits' can't be"),
        ("channels=0:1", "'channels=0:1' can't be; write it like channels=0:1:2 or channels=0, counted from 0"),
        ("channels=-1", "'channels=-1' can't be"),
        ("range=1:1", "'range=1:1' can't be; write it like range=0:1, black and white"),
        ("range=0:inf", "'range=0:inf' can't be"),
        ("background=green", "'background=green' can't be; write it like background=white, or black, gray, #rrggbb"),
        ("color=p3", "'color=p3' can't be; write it like color=srgb"),
        ("bits=12,bits=10", "bits is given twice in 'bits=12,bits=10'"),
    ],
)
def test_a_wrong_reading_of_pixels_is_named(text: str, fault: str) -> None:
    faults = ExtractConfig(backbone="resnet18", out=Path("store"), pixels=text).faults()
    assert len(faults) == 1 and faults[0].startswith(f"--pixels: {fault}")
