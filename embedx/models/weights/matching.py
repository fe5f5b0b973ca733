"""Matching a checkpoint's tensors to a backbone's, under any nesting and any prefix.

The keys that a checkpoint nests its tensors under, and the names of modules around the backbone, both stand before the
backbone's own names. Together they are one prefix, which is found by comparing names and shapes. No file is read here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models

from embedx.errors import CheckpointError
from embedx.models.weights.candidate import Candidate, compare
from embedx.models.weights.misfit import listed, misfit
from embedx.models.weights.naming import is_counter, namings


@dataclasses.dataclass(frozen=True)
class CheckpointMatch:
    """The tensors of a checkpoint that are the backbone's; `str` describes the match in one line."""

    tensors: Mapping[str, Tensor]
    """The tensors by the backbone's names."""
    prefix: str
    """The text before those names in the checkpoint: empty, or ending in a dot."""
    ignored: tuple[str, ...]
    """The checkpoint's other tensors."""
    changes: tuple[str, ...] = ()
    """The changes to names and values, one phrase each."""

    def __str__(self) -> str:
        prefix = f"prefix {self.prefix!r} stripped" if self.prefix else "no prefix stripped"
        ignored = f"{len(self.ignored)} ignored ({listed(self.ignored, 3)})" if self.ignored else "none ignored"
        return "; ".join([f"{len(self.tensors)} tensors matched, {prefix}, {ignored}", *self.changes])


Translate = Callable[[nn.Module, Mapping[str, Tensor]], Mapping[str, Tensor] | None]
"""A library's own translation of a checkpoint's tensors to a model's names and shapes; None if it has none."""


def fill(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: Path,
    heads: Collection[str] = (),
    key: str | None = None,
    translate: Translate | None = None,
) -> CheckpointMatch:
    """Sets every tensor of a backbone, which may be on the meta device, from those that `match_tensors` finds.

    Args:
        model: The backbone without weights.
        state: The checkpoint's tensors by dotted name.
        source: The checkpoint's path, for messages.
        heads: The names of the backbone's modules whose tensors may be there.
        key: A dotted key; only the tensors under it are considered.
        translate: A translation to try on checkpoints that don't fit as they are.

    Raises:
        CheckpointError: If `match_tensors` raises it; the model must not be used then.
    """
    wanted = model.state_dict()
    state = {_current_name(model, name): tensor for name, tensor in state.items()}
    unused = [*heads, *(name for name, _ in model.named_buffers() if name not in wanted)]
    try:
        match = match_tensors(wanted, state, source=source, heads=unused, key=key)
    except CheckpointError:
        translated = None if translate is None else _translated(model, state, translate, unused, key)
        if translated is None:
            raise
        match = translated
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
    """Finds the one prefix under which a checkpoint holds all of a backbone's tensors, under their names or `namings`.

    Other tensors are ignored. But further tensors of the backbone's own modules under the same prefix are an error, as
    they belong to a larger architecture.

    Args:
        wanted: The backbone's tensors by name; their shapes and kinds of number are compared. Position embeddings of
            another size are resampled.
        state: The checkpoint's tensors by dotted name.
        source: The checkpoint's path, for messages.
        heads: The names of the backbone's modules and buffers whose tensors may be there.
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
    candidates = _candidates(wanted, under_key, heads)
    changes: tuple[str, ...] = ()
    names: Mapping[str, str] = {name: name for name in wanted}
    if not any(candidate.fits for candidate in candidates):
        for naming in namings(wanted, under_key):
            renamed = {naming.names[name]: tensor for name, tensor in wanted.items()}
            others = _candidates(renamed, under_key, [_renamed(head, naming.names) for head in heads])
            if any(candidate.fits for candidate in others):
                candidates, names, changes = others, naming.names, (f"names: {naming.words}",)
                break
        else:
            first, *more = misfit(wanted, under_key, candidates, source.name)
            raise CheckpointError([f"{source} does not fit the backbone: {first}", *more])
    chosen = _choose([one for one in candidates if one.fits], source, scope if key is not None else None)
    used = {chosen.prefix + name for name in chosen.tensors}
    tensors = {name: chosen.tensors[other] for name, other in names.items() if other in chosen.tensors}
    ignored = tuple(name for name in state if name not in used)
    return CheckpointMatch(tensors, chosen.prefix, ignored, (*changes, *chosen.resampled))


def _renamed(head: str, names: Mapping[str, str]) -> str:
    """Returns the checkpoint's name of a head that is inside a part with tensors of the backbone, such as `2.3`."""
    part, dot, rest = head.partition(".")
    for name, other in names.items():
        if dot and name.startswith(f"{part}.") and other.endswith(name[len(part) :]):
            return f"{other.removesuffix(name[len(part) :])}.{rest}"
    return head


def _choose(fitting: Sequence[Candidate], source: Path, scope: str | None) -> Candidate:
    """Returns the one candidate that fits, or the one right under the key that was given."""
    named = [candidate for candidate in fitting if candidate.prefix == scope]
    chosen, *others = named or fitting
    rivals = [other for other in others if not _same_values(other, chosen)]
    if rivals:
        keys = [candidate.prefix.removesuffix(".") or "''" for candidate in (chosen, *rivals)]
        raise CheckpointError(
            f"{source}: {len(keys)} sub-models fit the backbone equally well; "
            f"choose with {' or '.join(f'--checkpoint-key {key}' for key in keys)}"
        )
    return chosen


def _translated(
    model: nn.Module, state: Mapping[str, Tensor], translate: Translate, heads: Collection[str], key: str | None
) -> CheckpointMatch | None:
    """Matches what a library translates of the tensors under a prefix, the first that gives all the backbone's."""
    scope = f"{key}." if key else ""
    prefixes = {name[: dot.end()]: None for name in state for dot in re.finditer(r"\.", name)}
    wanted = model.state_dict()
    for prefix in ("", *prefixes):
        part = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        if not prefix.startswith(scope) or len(part) < len(wanted) // 2:
            continue
        translated = translate(model, part)
        match = None if translated is None else compare("", wanted, translated, heads)
        if match is not None and match.fits:
            ignored = tuple(name for name in state if not name.startswith(prefix))
            return CheckpointMatch(match.tensors, prefix, ignored, ("names and shapes: translated by its library",))
    return None


def _prefixes(wanted: Collection[str], names: Iterable[str]) -> list[str]:
    """Lists the texts, empty or ending in a dot, before one of the backbone's names, in the checkpoint's order."""
    found = (
        name[:start]
        for name in names
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", name)))
        if name[start:] in wanted
    )
    return list(dict.fromkeys(found))


def _candidates(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], heads: Collection[str]) -> list[Candidate]:
    return [compare(prefix, wanted, state, heads) for prefix in _prefixes(wanted, state)]


def _same_values(one: Candidate, other: Candidate) -> bool:
    return all(
        is_counter(name) or (tensor.dtype == other.tensors[name].dtype and torch.equal(tensor, other.tensors[name]))
        for name, tensor in one.tensors.items()
    )


def _current_name(model: nn.Module, name: str) -> str:
    """Returns the model's name of a tensor: torchvision's DenseNet weights still have their names from before 2018.

    `norm.1.weight` in a dense layer is now `norm1.weight`; torchvision renames it in the same way.
    """
    if isinstance(model, models.DenseNet):
        return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)
    return name
