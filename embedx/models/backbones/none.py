"""`--backbone none`: the inputs are features already, and are only pooled and scaled."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from embedx.config import ExtractConfig
from embedx.errors import ConfigError
from embedx.models.backbones import BackboneSpec
from embedx.models.backbones.base import Architecture
from embedx.models.weights.find import Weights
from embedx.names import NO_BACKBONE

_BACKBONE_SETTINGS = (
    *("backbone_arg", "weights", "checkpoint", "layer"),
    *("image_size", "resize", "crop", "crop_pct", "crop_first", "mean", "std", "interpolation", "pixels"),
)
"""The settings that concern a backbone or its images."""


class NoBackbone(Architecture):
    """The identity in place of a backbone."""

    def build(self) -> tuple[nn.Module, tuple[str, ...]]:
        """Returns the identity."""
        return nn.Identity(), ()


def describe_features(config: ExtractConfig, shape: tuple[int, ...]) -> BackboneSpec:
    """Determines the outputs for features of this shape, (D,) or (T, D).

    Raises:
        ConfigError: If a setting is given that needs a backbone.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(ExtractConfig)}
    ConfigError.check(
        [
            f"--{name.replace('_', '-')} needs a backbone, and there is none"
            for name in _BACKBONE_SETTINGS
            if getattr(config, name) != defaults[name]
        ]
    )
    identity = NoBackbone(NO_BACKBONE, Weights(NO_BACKBONE), preprocessing=None)
    spec = BackboneSpec(identity, None, (), config.pool, config.normalize, shapes={}, input_shape=shape)
    outputs = spec.load()(torch.zeros(1, *shape))
    return dataclasses.replace(spec, shapes={name: tuple(out.shape[1:]) for name, out in outputs.items()})
