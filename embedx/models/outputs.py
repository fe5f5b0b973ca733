"""The one tensor that is taken from the output of a module that someone else wrote, and the wrapper of programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from embedx.errors import ConfigError
from embedx.names import EMBEDDINGS

_ENTRIES = (EMBEDDINGS, "image_embeds", "features", "pooler_output", "last_hidden_state", "out")
"""The names of the entries that are looked for in a dict, the most final first."""


def main_tensor(output: Any) -> Tensor:
    """Returns the one tensor that stands for a module's output.

    Args:
        output: A tensor; a dict, whose tensor of a usual name is taken, or its only tensor; or a tuple or list, whose
            first item is taken.

    Raises:
        ConfigError: If there is no such tensor.
    """
    if isinstance(output, Mapping):
        tensors = {name: value for name, value in output.items() if isinstance(value, Tensor)}
        names = _ENTRIES if len(tensors) > 1 else tensors
        entry = next((name for name in names if name in tensors), None)
        if entry is None:
            raise ConfigError(
                f"the backbone returns a dict of {', '.join(map(str, output)) or 'nothing'}; "
                f"name the entry to be stored {EMBEDDINGS!r}"
            )
        return tensors[entry]
    first = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(first, Tensor):
        raise ConfigError(f"the backbone returns a {type(first).__name__}, no tensor; let it return features [B, D]")
    return first


class FrozenProgram(nn.Module):
    """A program, run in the mode, precision and memory layout in which it was made.

    Exported graphs run in no other: their views assume the layout, and their mode is fixed.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        """Computes the features [B, …] of normalised float32 images [B, 3, H, W]."""
        return main_tensor(self.module(images.contiguous()))

    def train(self, mode: bool = True) -> FrozenProgram:
        """Changes nothing; an exported graph would refuse another mode."""
        return self
