from __future__ import annotations

from pathlib import Path

import pytest

from embedx.config import ExtractConfig
from embedx.errors import ConfigError
from embedx.models.weights.find import WeightsOptions, find_weights

BACKBONE = "squeezenet1_1"


def test_the_options_are_those_of_the_configuration() -> None:
    config = ExtractConfig(backbone=BACKBONE, out=Path("store"), checkpoint="last.ckpt", checkpoint_key="teacher")
    assert WeightsOptions.of(config) == WeightsOptions(BACKBONE, "DEFAULT", "last.ckpt", "teacher", seed=0)


def test_random_weights_are_named_with_their_seed() -> None:
    weights, _ = find_weights(WeightsOptions(BACKBONE, "random", seed=7), download=False)
    assert weights.to_json() == {"name": "random", "seed": 7}


def test_unknown_weights_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown --weights 'IMAGENET1K'; did you mean IMAGENET1K_V1\?"):
        find_weights(WeightsOptions(BACKBONE, "IMAGENET1K"), download=False)


def test_the_bundled_weights_are_those_of_one_backbone() -> None:
    with pytest.raises(ConfigError, match=r"--weights sample are those of (\w+); give --backbone \1"):
        find_weights(WeightsOptions(BACKBONE, "sample"), download=False)
