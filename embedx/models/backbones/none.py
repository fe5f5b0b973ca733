"""`--backbone none`: the inputs are features already, and are only pooled and scaled."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from embedx.config import ExtractConfig
from embedx.errors import ConfigError
from embedx.models.backbones import BackboneSpec
from embedx.models.backbones.base import Architecture
from embedx.models.embedder import Embedder, finished
from embedx.models.weights.find import Weights
from embedx.names import EMBEDDINGS, NO_BACKBONE

_BACKBONE_SETTINGS = (
    *("backbone_arg", "weights", "checkpoint", "layer"),
    *("image_size", "resize", "crop", "mean", "std", "interpolation"),
)
"""The settings that concern a backbone or its images."""


class NoBackbone(Architecture):
    """The identity in place of a backbone."""

    name = NO_BACKBONE
    weights = Weights(NO_BACKBONE)
    preprocessing = None

    def build(self) -> tuple[nn.Module, tuple[str, ...]]:
        """Returns the identity."""
        return nn.Identity(), ()


class Passthrough(Embedder):
    """An embedder of features instead of images."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Pools and scales features [B, D] or [B, T, D]."""
        return finished({EMBEDDINGS: images}, self.pool, normalize=self.normalize)


@dataclasses.dataclass(frozen=True)
class FeatureSpec(BackboneSpec):
    """The description of a run over features, all of one shape."""

    input_shape: tuple[int, ...] = ()
    """The shape of one input: (D,) or (T, D)."""

    def load(self) -> Embedder:
        """Builds the module that pools and scales the features."""
        return Passthrough(nn.Identity(), None, pool=self.pool, normalize=self.normalize).eval()


def describe_features(config: ExtractConfig, shape: tuple[int, ...]) -> FeatureSpec:
    """Determines the outputs for features.

    Args:
        config: The settings of the run.
        shape: The shape of one input: (D,) or (T, D).

    Raises:
        ConfigError: If a setting is given that needs a backbone.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(ExtractConfig)}
    needless = [
        f"--{name.replace('_', '-')} needs a backbone, and there is none"
        for name in _BACKBONE_SETTINGS
        if getattr(config, name) != defaults[name]
    ]
    ConfigError.check(needless)
    spec = FeatureSpec(NoBackbone(), None, (), config.pool, config.normalize, shapes={}, input_shape=shape)
    outputs = spec.load()(torch.zeros(1, *shape))
    return dataclasses.replace(spec, shapes={name: tuple(out.shape[1:]) for name, out in outputs.items()})
