"""Matching a checkpoint's tensors to a backbone's, under any nesting and any prefix.

The keys that a checkpoint nests its tensors under, and the names of modules around the backbone, both stand before the
backbone's own names. Together they are one prefix, which is found by comparing names and shapes. No file is read here.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models

from embedx.errors import CheckpointError


@dataclasses.dataclass(frozen=True)
class CheckpointMatch:
    """The tensors of a checkpoint that are the backbone's; `str` describes the match in one line."""

    tensors: Mapping[str, Tensor]
    """The tensors by the backbone's names."""
    prefix: str
    """The text before those names in the checkpoint: empty, or ending in a dot."""
    ignored: tuple[str, ...]
    """The checkpoint's other tensors."""

    def __str__(self) -> str:
        prefix = f"prefix {self.prefix!r} stripped" if self.prefix else "no prefix stripped"
        ignored = f"{len(self.ignored)} ignored ({listed(self.ignored, 3)})" if self.ignored else "none ignored"
        return f"{len(self.tensors)} tensors matched, {prefix}, {ignored}"


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """A prefix, and the tensors under it that fit or don't."""

    prefix: str
    tensors: dict[str, Tensor]
    """The tensors that fit, by the backbone's names."""
    missing: list[str]
    mismatched: list[str]
    """The messages with a tensor's name, its shape in the checkpoint, and the backbone's shape."""
    unexpected: list[str]

    @property
    def fits(self) -> bool:
        return not (self.missing or self.mismatched or self.unexpected)


def fill(
    model: nn.Module, state: Mapping[str, Tensor], *, source: Path, heads: Collection[str] = (), key: str | None = None
) -> CheckpointMatch:
    """Sets every tensor of a backbone, which may be on the meta device, from those that `match_tensors` finds.

    Raises:
        CheckpointError: If `match_tensors` raises it; the model must not be used then.
    """
    wanted = model.state_dict()
    state = {_current_name(model, name): tensor for name, tensor in state.items()}
    match = match_tensors(wanted, state, source=source, heads=heads, key=key)
    # Contiguous, as the choice of kernels, and with it the embeddings' bits, must follow from the values alone.
    own = {name: tensor.to(wanted[name].dtype).contiguous() for name, tensor in match.tensors.items()}
    wanted.update(own)  # this keeps the version number that models such as MNASNet ask for
    model.load_state_dict(wanted, assign=True)
    return match


def match_tensors(
    wanted: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    *,
    source: Path,
    heads: Collection[str] = (),
    key: str | None = None,
) -> CheckpointMatch:
    """Finds the one prefix under which a checkpoint holds all of a backbone's tensors.

    Other tensors are ignored. But further tensors of the backbone's own modules under the same prefix are an error, as
    they belong to a larger architecture.

    Args:
        wanted: The backbone's tensors by name; their shapes and kinds of number are compared.
        state: The checkpoint's tensors by dotted name.
        source: The checkpoint's path, for messages.
        heads: The names of the backbone's modules whose tensors may be there.
        key: A dotted key; only the tensors under it are considered, and those right under it are preferred.

    Raises:
        CheckpointError: If nothing is under `key`, no prefix fits, or several do with different values.
    """
    scope = f"{key}." if key else ""
    under_key = {name: tensor for name, tensor in state.items() if name.startswith(scope)}
    if not under_key:
        tops = dict.fromkeys(name.partition(".")[0] for name in state)
        raise CheckpointError(
            f"{source}: nothing is under --checkpoint-key {key}; its top-level keys are {listed(tops, 12)}"
        )
    candidates = [_compare(prefix, wanted, under_key, heads) for prefix in _prefixes(wanted, under_key)]
    fitting = [candidate for candidate in candidates if candidate.fits]
    if not fitting:
        raise CheckpointError(f"{source} does not fit the backbone: {_misfit(wanted, under_key, candidates)}")
    named = [candidate for candidate in fitting if key is not None and candidate.prefix == scope]
    chosen, *others = named or fitting
    rivals = [other for other in others if not _same_values(other, chosen)]
    if rivals:
        keys = [candidate.prefix.removesuffix(".") or "''" for candidate in (chosen, *rivals)]
        raise CheckpointError(
            f"{source}: {len(keys)} sub-models fit the backbone equally well; "
            f"choose with {' or '.join(f'--checkpoint-key {key}' for key in keys)}"
        )
    used = {chosen.prefix + name for name in chosen.tensors}
    return CheckpointMatch(chosen.tensors, chosen.prefix, tuple(name for name in state if name not in used))


def listed(names: Collection[object], limit: int = 8) -> str:
    """Joins the first names with commas, and adds an ellipsis if there are more."""
    return ", ".join(map(str, itertools.islice(names, limit))) + (", …" if len(names) > limit else "")


def _prefixes(wanted: Collection[str], names: Iterable[str]) -> list[str]:
    """Lists the texts, empty or ending in a dot, before one of the backbone's names, in the checkpoint's order."""
    found = (
        name[:start]
        for name in names
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", name)))
        if name[start:] in wanted
    )
    return list(dict.fromkeys(found))


def _compare(
    prefix: str, wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], heads: Collection[str]
) -> _Candidate:
    found = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    modules = {name.partition(".")[0] for name in wanted}
    unused = tuple(f"{head}." for head in heads)
    tensors = {name: found[name] for name in wanted if name in found and _is_like(found[name], wanted[name])}
    return _Candidate(
        prefix,
        tensors,
        missing=[name for name in wanted if name not in found and not _is_counter(name)],
        mismatched=[
            f"{name} {_shape(found[name])} instead of {_shape(tensor)}"
            for name, tensor in wanted.items()
            if name in found and name not in tensors
        ],
        unexpected=[
            name
            for name in found
            if name not in wanted and name.partition(".")[0] in modules and not name.startswith(unused)
        ],
    )


def _is_like(tensor: Tensor, wanted: Tensor) -> bool:
    """Tells whether a tensor can be cast to the wanted one; integers in place of a weight are quantised, and can't."""
    return tensor.shape == wanted.shape and (tensor.is_floating_point() or not wanted.is_floating_point())


def _is_counter(name: str) -> bool:
    """Tells whether a tensor counts batches: old checkpoints lack it, and evaluation does not use it."""
    return name.endswith("num_batches_tracked")


def _same_values(one: _Candidate, other: _Candidate) -> bool:
    return all(
        _is_counter(name) or (tensor.dtype == other.tensors[name].dtype and torch.equal(tensor, other.tensors[name]))
        for name, tensor in one.tensors.items()
    )


def _shape(tensor: Tensor) -> str:
    return f"{list(tensor.shape)}" if tensor.is_floating_point() else f"{list(tensor.shape)} {tensor.dtype}"


def _misfit(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], candidates: Sequence[_Candidate]) -> str:
    """Words the faults of the candidate that comes nearest."""
    advice = "give the --backbone that it is a checkpoint of"
    if not candidates:
        return f"it holds {listed(state)}, and none of the backbone's tensors, {listed(wanted)}; {advice}"
    nearest = max(candidates, key=lambda candidate: (len(candidate.tensors), len(candidate.mismatched)))
    where = f"under the prefix {nearest.prefix!r} " if nearest.prefix else ""
    kinds = {"missing": nearest.missing, "unexpected": nearest.unexpected, "of another shape": nearest.mismatched}
    faults = "".join(f"  {len(names)} {kind}: {listed(names)}\n" for kind, names in kinds.items() if names)
    return f"{where}{len(nearest.tensors)} of its {len(wanted)} tensors match\n{faults}{advice}"


def _current_name(model: nn.Module, name: str) -> str:
    """Returns the model's name of a tensor: torchvision's DenseNet weights still have their names from before 2018.

    `norm.1.weight` in a dense layer is now `norm1.weight`; torchvision renames it in the same way.
    """
    if isinstance(model, models.DenseNet):
        return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)
    return name
