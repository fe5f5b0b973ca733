"""Settings as Python programs give them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedx.api.arguments import config_of, specs_of
from embedx.config import ExtractConfig
from embedx.errors import ConfigError

REQUIRED: dict[str, Any] = {"backbone": "resnet18", "out": "store"}


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("out", Path("store"), Path("store")),
        ("batch_size", "auto", "auto"),
        ("batch_size", 8, 8),
        ("workers", np.int64(3), 3),
        ("crop_pct", 1, 1.0),
        ("layer", "layer4", ("layer4",)),
        ("layer", ["layer3", "layer4"], ("layer3", "layer4")),
        ("shard_size", "1MiB", 1 << 20),
        ("shard_size", 1000, 1000),
        ("mean", 0.5, (0.5, 0.5, 0.5)),
        ("std", [0.2, 0.3, 0.4], (0.2, 0.3, 0.4)),
        ("resize", (240, 320), (240, 320)),
        ("resize", "240x320", (240, 320)),
        ("max_unavailable", 5, "5"),
        ("max_gone", "60%", 0.6),
        ("precision", None, None),
        ("checkpoint", Path("weights.pt"), "weights.pt"),
        ("backbone_arg", {"depth": 3, "act": "gelu"}, ("depth=3", 'act="gelu"')),
        ("exif", False, False),
    ],
)
def test_a_value_is_python_s_or_the_command_s_text(name: str, given: Any, value: Any) -> None:
    assert config_of({**REQUIRED, name: given}, ExtractConfig) == ExtractConfig(**{**REQUIRED, name: value})


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("bakbone", "x", "unknown setting 'bakbone'; did you mean backbone?"),
        ("backbone", 3, "backbone: 3 is not what it takes; give a text"),
        ("workers", "two", "workers: 'two' is not what it takes; give a whole number"),
        ("workers", True, "workers: True is not what it takes"),
        ("batch_size", "many", "batch_size: 'many' is not a number of images"),
        ("precision", "fp8", "precision: 'fp8' is not what it takes; give 'auto', 'fp32', 'tf32', 'bf16' or 'fp16'"),
        ("normalize", 1, "normalize: 1 is not what it takes; give True or False"),
        ("layer", 3, "layer: 3 is not what it takes; give a list of texts"),
        ("pool", None, "pool: None is not what it takes; give 'avg', 'max'"),
    ],
)
def test_a_value_that_can_t_be_is_refused(name: str, given: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config_of({**REQUIRED, name: given}, ExtractConfig)
    assert message in str(raised.value)


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        config_of({"wrokers": 2, "layer": 5}, ExtractConfig)
    assert [fault.split("; ")[0] for fault in raised.value.faults] == [
        "layer: 5 is not what it takes",
        "the setting backbone is missing",
        "the setting out is missing",
        "unknown setting 'wrokers'",
    ]


@pytest.mark.parametrize(
    ("data", "specs"),
    [
        ("photos", ("photos",)),
        (Path("photos"), ("photos",)),
        (["a.jpg", Path("b.jpg")], ("a.jpg", "b.jpg")),
        ({"train": "a", "val": ["b", Path("c")]}, ("train=a", "val=b", "val=c")),
        (None, ()),
    ],
)
def test_inputs_are_a_path_several_or_a_dict(data: Any, specs: tuple[str, ...]) -> None:
    assert specs_of(data) == specs


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.uint8), "data is of type ndarray; give a path, .* there is embedx.embed"),
        ([os], "data is of type list of module; give a path"),
        ([], "data has an empty list, and so no inputs; leave it out for the bundled sample"),
        ({}, "data has an empty dict"),
        ({"train": "photos", "val": []}, "data has an empty list"),
        ({"train": {"cat": "photos"}}, "data is of type dict; give a path"),
        ({"a/b": "photos"}, "a split can't be named 'a/b'"),
        ({3: "photos"}, "a split can't be named 3"),
    ],
)
def test_other_inputs_are_refused(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        specs_of(data)
