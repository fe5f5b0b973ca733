"""Position embeddings of another number of patches, resampled as timm does it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Size, Tensor
from torch.nn import functional

_NAMES = ("pos_embed", "pos_embedding", "position_embedding", "position_embeddings", "positional_embedding")
"""The last parts of the names of position embeddings, but for a `weight` behind them."""
_PREFIX_TOKENS = (1, 0, 2, 5, 3, 4, 9)
"""The numbers of class, distillation and register tokens that may come before the patches' own embeddings."""


def is_position(name: str) -> bool:
    """Tells whether a tensor is an absolute position embedding, by its name."""
    return re.split("[./]", name.removesuffix(".weight"))[-1] in _NAMES


def grids(old: Size, new: Size) -> tuple[int, int, int] | None:
    """Returns the sides of the old and the new grid of patches, and the number of tokens before them.

    Args:
        old: The shape of position embeddings [1, T, D] or [T, D], of a square of patches.
        new: The wanted shape.

    Returns:
        None if the shapes are none of the same embeddings, or are equal.
    """
    if len(old) != len(new) or len(old) not in (2, 3) or old[-1] != new[-1] or old[:-2] != new[:-2] or old == new:
        return None
    for prefix in _PREFIX_TOKENS:
        sides = [math.isqrt(max(shape[-2] - prefix, 0)) for shape in (old, new)]
        if all(side and side**2 + prefix == shape[-2] for side, shape in zip(sides, (old, new), strict=True)):
            return sides[0], sides[1], prefix
    return None


def size_change(sides: tuple[int, int, int]) -> str:
    """Words the two grids that `grids` found, as `24x24 to 14x14`."""
    old, new, _ = sides
    return f"{old}x{old} to {new}x{new}"


def position_change(state: Mapping[str, Tensor], wanted: Size) -> str | None:
    """Returns the change of size that a checkpoint's position embeddings need, as `24x24 to 14x14`; None if none.

    Args:
        state: The checkpoint's tensors by name, whatever stands before or behind the position embeddings' own.
        wanted: The shape of the backbone's.
    """
    shapes = [Size([*wanted[:-2], *tensor.shape[-2:]]) for name, tensor in state.items() if is_position(name)]
    if wanted in shapes:
        return None
    return next((size_change(sides) for shape in shapes if (sides := grids(shape, wanted))), None)


def resampled(tensor: Tensor, shape: Size) -> Tensor:
    """Resamples position embeddings to a shape for which `grids` finds the grids.

    Bicubic and antialiased, in float32: timm's `resample_abs_pos_embed`, which is the reference of the tests.
    """
    found = grids(tensor.shape, shape)
    if found is None:
        raise ValueError(f"no position embeddings of the shape {list(shape)} can be made of {list(tensor.shape)}")
    old, new, prefix = found
    tokens = tensor.reshape(-1, tensor.shape[-1])
    grid = tokens[prefix:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, size=(new, new), mode="bicubic", antialias=True)
    patches = grid.permute(0, 2, 3, 1).reshape(new * new, -1).to(tensor.dtype)
    return torch.cat([tokens[:prefix], patches]).reshape(shape)
