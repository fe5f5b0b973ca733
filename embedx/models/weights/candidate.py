"""A part of a checkpoint that may be a backbone's weights, compared tensor by tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from torch import Tensor

from embedx.models.weights.naming import is_counter
from embedx.models.weights.position import grids, is_position, resampled, size_change


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A prefix, and the tensors under it that fit or don't."""

    prefix: str
    tensors: dict[str, Tensor]
    """The tensors that fit, by the backbone's names."""
    missing: list[str]
    mismatched: dict[str, tuple[Tensor, Tensor]]
    """The checkpoint's tensor and the backbone's, where one can't take the other's place."""
    unexpected: list[str]
    resampled: tuple[str, ...]
    """The phrases on position embeddings that were resampled."""

    @property
    def fits(self) -> bool:
        """True if the backbone can be filled with these tensors."""
        return not (self.missing or self.mismatched or self.unexpected)


def compare(
    prefix: str, wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], heads: Collection[str]
) -> Candidate:
    """Compares the tensors under one prefix of a checkpoint with a backbone's.

    Args:
        prefix: The text before the backbone's names, empty or ending in a dot.
        wanted: The backbone's tensors by name.
        state: The checkpoint's tensors by name.
        heads: The names of the backbone's modules and buffers whose tensors may be there.
    """
    found = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    modules = {name.partition(".")[0] for name in wanted}
    tensors, mismatched, phrases = {}, {}, []
    for name, tensor in wanted.items():
        if name in found and _is_like(found[name], tensor):
            tensors[name] = found[name]
        elif name in found and is_position(name) and (sides := grids(found[name].shape, tensor.shape)):
            tensors[name] = resampled(found[name], tensor.shape)
            phrases.append(f"position embeddings resampled from {size_change(sides)} patches")
        elif name in found:
            mismatched[name] = (found[name], tensor)
    unused = tuple(f"{head}." for head in heads)
    return Candidate(
        prefix,
        tensors,
        missing=[name for name in wanted if name not in found and not is_counter(name)],
        mismatched=mismatched,
        unexpected=[
            name
            for name in found
            if name not in wanted
            and name.partition(".")[0] in modules
            and name not in heads
            and not name.startswith(unused)
        ],
        resampled=tuple(phrases),
    )


def _is_like(tensor: Tensor, wanted: Tensor) -> bool:
    """Tells whether a tensor can be cast to the wanted one; integers in place of a weight are quantised, and can't."""
    return tensor.shape == wanted.shape and (tensor.is_floating_point() or not wanted.is_floating_point())
