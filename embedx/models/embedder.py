"""The way from uint8 images to the stored vectors: normalise, run the backbone, pool, scale.

Shapes: B images, C channels, D embedding dimension, T tokens.
"""

from __future__ import annotations

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
    """

    def __init__(self, backbone: nn.Module, preprocessing: Preprocessing | None, *, pool: str, normalize: bool) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.backbone = backbone
        self.pool = pool
        self.normalize = normalize
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
        inputs = (images - self.mean) / self.std if self.of_images else images
        features = self.backbone(inputs.to(_input_dtype(self.backbone)))
        if isinstance(features, Tensor):
            features = {EMBEDDINGS: features}
        for name, value in features.items():
            if not isinstance(value, Tensor):
                raise ConfigError(f"--layer {name} gives a {type(value).__name__}, no tensor; give a layer near it")
        names = sorted(features, key=EMBEDDINGS.__ne__)
        pooled = {name: pool_features(features[name].float(), self.pool) for name in names}
        if self.normalize:
            return {name: functional.normalize(value, dim=channel_dim(value)) for name, value in pooled.items()}
        return pooled


def _input_dtype(backbone: nn.Module) -> torch.dtype:
    """Returns the dtype of the backbone's parameters; float32 for programs, and for modules without parameters."""
    if isinstance(backbone, FrozenProgram):
        return torch.float32
    return next((parameter.dtype for parameter in backbone.parameters()), torch.float32)


def pool_features(features: Tensor, how: str) -> Tensor:
    """Pools a map or tokens into one vector per image.

    Args:
        features: The features [B, D], [B, T, D] with the class token first, [B, C, H, W] or [B, H, W, C], with H = W.
        how: One of `avg`, `max`, `gem` (generalised mean, p = 3), `cls` (the first token), or `none`.

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
    channels = channel_dim(features)
    dims = [dim for dim in range(1, features.ndim) if dim != channels]
    if how == "max":
        return features.amax(dims)
    if how == "gem":
        return features.clamp(min=_GEM_FLOOR).pow(_GEM_POWER).mean(dims).pow(1 / _GEM_POWER)
    return features.mean(dims)


def channel_dim(features: Tensor) -> int:
    """Finds the dimension of the channels: the last one for vectors and tokens, the odd one out for a square map.

    Some models hold their maps as [B, H, W, C]. As images are square, the shape shows which dimension it is.

    Raises:
        ConfigError: If the shape leaves it open.
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
        f"the channels of a layer of shape {list(features.shape)} could be more than one of its dimensions; "
        "give --pool none and leave --normalize out"
    )
