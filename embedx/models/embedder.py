"""From uint8 images to the vectors that are stored: normalise, run the backbone, pool, scale.

Shapes: B images, C channels, D embedding dimension, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedx.errors import ConfigError
from embedx.models.foreign import Opaque
from embedx.recipe import Preprocessing

_GEM_POWER = 3.0
"""p of generalised-mean pooling; the value of Radenović et al., Fine-tuning CNN Image Retrieval (2018)."""
_GEM_FLOOR = 1e-6


class Embedder(nn.Module):
    """A backbone between the preset's normalisation and pooling.

    Args:
        backbone: [B, 3, H, W] → [B, D], or a dict of named features.
        preprocessing: Whose mean and std normalise the images; None if there are none.
        pool: How maps and tokens become vectors.
        normalize: Whether vectors are scaled to unit L2 length.
    """

    def __init__(
        self,
        backbone: nn.Module,
        preprocessing: Preprocessing | None,
        *,
        pool: str,
        normalize: bool,
    ) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.backbone = backbone
        self.pool = pool
        self.normalize = normalize
        if preprocessing is None:
            return
        # In units of the uint8 values, so that scaling to [0, 1] is no step of its own.
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1) * 255, persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Computes the features.

        Args:
            images: [B, 3, H, W] uint8.

        Returns:
            `embeddings` [B, D] first, then one entry per extra layer: [B, D], or unpooled. Pooled and scaled in
            float32, whatever the backbone computes in; half precision would lose or overflow their sums.
        """
        features = self.backbone(((images - self.mean) / self.std).to(_input_dtype(self.backbone)))
        if isinstance(features, Tensor):
            features = {"embeddings": features}
        for name, value in features.items():
            if not isinstance(value, Tensor):
                raise ConfigError(f"--layer {name} gives a {type(value).__name__}, no tensor; give a layer near it")
        return finished(features, self.pool, normalize=self.normalize)


def finished(features: Mapping[str, Tensor], pool: str, *, normalize: bool) -> dict[str, Tensor]:
    """Pools features and scales them to unit length if asked to, in float32 throughout; `embeddings` come first."""
    names = sorted(features, key="embeddings".__ne__)
    pooled = {name: pool_features(features[name].float(), pool) for name in names}
    if normalize:
        return {name: functional.normalize(value, dim=channel_dim(value)) for name, value in pooled.items()}
    return pooled


def _input_dtype(backbone: nn.Module) -> torch.dtype:
    """What it computes in; quantised ones and programs, which may hold no parameters, take float32."""
    if isinstance(backbone, Opaque):
        return torch.float32
    return next((parameter.dtype for parameter in backbone.parameters()), torch.float32)


def pool_features(features: Tensor, how: str) -> Tensor:
    """Makes one vector of a map or of tokens.

    Args:
        features: [B, D], [B, T, D] with the class token first, [B, C, H, W] or [B, H, W, C], with H = W.
        how: `avg`, `max`, `gem` (generalised mean, p = 3), `cls` (the first token), or `none`.

    Returns:
        [B, D]; `features` as they are if they are vectors already, or for `none`.

    Raises:
        ConfigError: If the features have another shape, or `cls` is asked of a map.
    """
    if features.ndim == 2 or how == "none":
        return features
    if how == "cls":
        if features.ndim != 3:
            raise ConfigError("--pool cls needs tokens, but the layer gives a map; give avg, max or gem")
        return features[:, 0]
    channels = channel_dim(features)
    dims = [dim for dim in range(1, features.ndim) if dim != channels]
    if how == "max":
        return features.amax(dims)
    if how == "gem":
        return features.clamp(min=_GEM_FLOOR).pow(_GEM_POWER).mean(dims).pow(1 / _GEM_POWER)
    return features.mean(dims)


def channel_dim(features: Tensor) -> int:
    """The dimension of the channels: the last one of vectors and tokens, the one that differs of a square map.

    Some models hold their maps as [B, H, W, C]; as images are square, the shape tells.

    Raises:
        ConfigError: If the shape does not tell.
    """
    if features.ndim in (2, 3):
        return features.ndim - 1
    if features.ndim == 4:
        _, first, second, third = features.shape
        if second == third != first:
            return 1
        if first == second != third:
            return 3
    raise ConfigError(
        f"of a layer of shape {list(features.shape)} can't be told which dimension the channels are; "
        "give --pool none and leave --normalize out"
    )
