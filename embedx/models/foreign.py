"""What is taken of the output of a module that someone else wrote, and how such a module is held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from embedx.errors import ConfigError

_ENTRIES = ("embeddings", "image_embeds", "features", "pooler_output", "last_hidden_state", "out")
"""Names of the entry that is taken where there are several, the most final first."""


def main_tensor(output: Any) -> Tensor:
    """The one tensor that stands for a module's output.

    Args:
        output: A tensor; or a dict, of whose tensors the one of a usual name is taken, or the only one; or a tuple
            or list, of which the first is taken.

    Raises:
        ConfigError: If there is no such tensor.
    """
    if isinstance(output, Mapping):
        tensors = {name: value for name, value in output.items() if isinstance(value, Tensor)}
        entry = next((name for name in _ENTRIES if name in tensors), None)
        if entry is None and len(tensors) == 1:
            (entry,) = tensors
        if entry is None:
            raise ConfigError(
                f"the backbone returns a dict of {', '.join(map(str, output)) or 'nothing'}; "
                f"name the entry to be stored {_ENTRIES[0]!r}"
            )
        return tensors[entry]
    first = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(first, Tensor):
        raise ConfigError(f"the backbone returns a {type(first).__name__}, no tensor; let it return features [B, D]")
    return first


class Opaque(nn.Module):
    """A module that is run as it is: in the mode, precision and memory layout in which it was made.

    Exported graphs take no other: their views assume that layout, and their mode is fixed.

    Args:
        module: From normalised float32 images [B, 3, H, W] to whatever `main_tensor` takes.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, …] of images [B, 3, H, W]."""
        return main_tensor(self.module(images.contiguous()))

    def train(self, mode: bool = True) -> Opaque:
        """Changes nothing, which an exported graph would refuse."""
        return self
