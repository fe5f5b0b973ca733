"""The way from uint8 images to the stored vectors: normalise, run the backbone, pool, scale.

Shapes: B images, C channels, D embedding dimension, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedx.errors import ConfigError
from embedx.models.outputs import FrozenProgram
from embedx.names import EMBEDDINGS
from embedx.recipe import Preprocessing

_GEM_POWER = 3.0
"""The power p of generalised-mean pooling; the value of Radenović et al., Fine-tuning CNN Image Retrieval (2018)."""
_GEM_FLOOR = 1e-6


class Embedder(nn.Module):
    """A backbone between the normalisation of images and the pooling of features.

    Args:
        backbone: The module from images [B, 3, H, W] to features [B, D], or to a dict of named features.
        preprocessing: The preprocessing whose mean and std normalise the images; None if the inputs are not images.
        pool: The way in which maps and tokens become vectors.
        normalize: Whether vectors are scaled to unit L2 length.
        channels: The dimension of the channels of each map whose shape leaves it open, by name.
    """

    def __init__(
        self,
        backbone: nn.Module,
        preprocessing: Preprocessing | None,
        *,
        pool: str,
        normalize: bool,
        channels: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.backbone = backbone
        self.pool = pool
        self.normalize = normalize
        self.channels = dict(channels)
        self.of_images = preprocessing is not None
        if preprocessing is not None:
            # In units of the uint8 values, which saves the step that scales them to [0, 1].
            self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1) * 255, persistent=False)
            self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1) * 255, persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Computes the features.

        Args:
            images: The images [B, 3, H, W] uint8, or features [B, D] or [B, T, D] where the inputs are not images.

        Returns:
            `embeddings` [B, D] first, then one entry per extra layer: [B, D], or unpooled. They are pooled and scaled
            in float32, whatever the backbone's precision, as sums in half precision lose bits or overflow.
        """
        return self.pooled(self.features(images))

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Computes what the backbone gives of images, `embeddings` first, then the layers; `forward` pools it."""
        inputs = (images - self.mean) / self.std if self.of_images else images
        features = self.backbone(inputs.to(_input_dtype(self.backbone)))
        if isinstance(features, Tensor):
            features = {EMBEDDINGS: features}
        for name, value in features.items():
            if not isinstance(value, Tensor):
                raise ConfigError(f"--layer {name} gives a {type(value).__name__}, no tensor; give a layer near it")
        return {name: features[name] for name in sorted(features, key=EMBEDDINGS.__ne__)}

    def pooled(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Pools and scales what `features` gave."""
        pooled = {}
        for name, value in features.items():
            channels = self.channels.get(name)
            pooled[name] = pool_features(value.float(), self.pool, channels)
            if self.normalize:
                dim = channel_dim(pooled[name], channels if pooled[name].ndim == 4 else None)
                pooled[name] = functional.normalize(pooled[name], dim=dim)
        return pooled


def _input_dtype(backbone: nn.Module) -> torch.dtype:
    """Returns the dtype of the backbone's parameters; float32 for programs, and for modules without parameters."""
    if isinstance(backbone, FrozenProgram):
        return torch.float32
    return next((parameter.dtype for parameter in backbone.parameters()), torch.float32)


def pool_features(features: Tensor, how: str, channels: int | None = None) -> Tensor:
    """Pools a map or tokens into one vector per image.

    Args:
        features: The features [B, D], [B, T, D] with the class token first, [B, C, H, W] or [B, H, W, C], with H = W.
        how: One of `avg`, `max`, `gem` (generalised mean, p = 3), `cls` (the first token), or `none`.
        channels: The dimension of a map's channels; None if the shape shows it.

    Returns:
        The vectors [B, D]; `features` unchanged if they are vectors already, or for `none`.

    Raises:
        ConfigError: If the features have another shape, or are a map and `how` is `cls`.
    """
    if features.ndim == 2 or how == "none":
        return features
    if how == "cls":
        if features.ndim != 3:
            raise ConfigError("--pool cls needs tokens, but the layer gives a map; give avg, max or gem")
        return features[:, 0]
    channels = channel_dim(features, channels)
    dims = [dim for dim in range(1, features.ndim) if dim != channels]
    if how == "max":
        return features.amax(dims)
    if how == "gem":
        return features.clamp(min=_GEM_FLOOR).pow(_GEM_POWER).mean(dims).pow(1 / _GEM_POWER)
    return features.mean(dims)


def channel_dim(features: Tensor, known: int | None = None) -> int:
    """Returns the dimension of the channels: the known one, or the one that the shape shows.

    Raises:
        ConfigError: If it is not known, and the shape leaves it open.
    """
    dim = shown_channel_dim(features.shape) if known is None else known
    if dim is not None:
        return dim
    raise ConfigError(
        f"the channels of a layer of shape {list(features.shape)} could be more than one of its dimensions; "
        "give --pool none and leave --normalize out"
    )


def shown_channel_dim(shape: Sequence[int]) -> int | None:
    """Finds the channels' dimension in a shape: the last one for vectors and tokens, the odd one out for a square map.

    Some models hold their maps as [B, H, W, C]. Images are square; so the shape leaves it open only where there are as
    many channels as rows.
    """
    if len(shape) in (2, 3):
        return len(shape) - 1
    if len(shape) == 4 and len({*shape[1:]}) == 2:
        return next((dim for dim in (1, 3) if shape[1:].count(shape[dim]) == 1), None)
    return None


def constant_dim(shape: Sequence[int], other: Sequence[int]) -> int | None:
    """Finds the channels of a map: the one dimension besides the batch that images of another size leave alone."""
    same = [dim for dim in range(1, len(shape)) if shape[dim] == other[dim]] if len(shape) == len(other) else []
    return same[0] if len(same) == 1 else None
