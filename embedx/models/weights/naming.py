"""Names under which a checkpoint may hold a backbone's tensors, where they are not the backbone's own.

A naming gives the checkpoint's name of each of the backbone's tensors; shapes are compared afterwards, as ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from torch import Size, Tensor

_CHUNKED = re.compile(r"\bblocks\.(\d+)\.(\d+)\.")
_NUMBER = re.compile(r"(?<![^.])\d+\.")
_NUMBERS = re.compile(r"\d+(\.\d+)*")


class Naming(NamedTuple):
    """One way to name a backbone's tensors."""

    words: str
    """The way in words, for the report."""
    names: Mapping[str, str]
    """The checkpoint's name of each of the backbone's tensors, without a common prefix."""


def is_counter(name: str) -> bool:
    """Tells whether a tensor counts batches: old checkpoints lack it, and evaluation does not use it."""
    return name.endswith("num_batches_tracked")


def namings(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Iterator[Naming]:
    """Yields the namings that a checkpoint may follow; each is worth trying only if those before it don't fit.

    Args:
        wanted: The backbone's tensors by name, in the order of its modules.
        state: The checkpoint's tensors by name.
    """
    yield from _without_first_part(wanted)
    yield from _chunked(wanted, state)
    yield from _numbered(wanted, state)


def _without_first_part(wanted: Mapping[str, Tensor]) -> Iterator[Naming]:
    """Names the tensors as a part of the backbone does that has them all, such as `features`."""
    parts: list[str] = []
    while len(firsts := {name.split(".")[len(parts)] for name in wanted}) == 1:
        parts.append(*firsts)
        if any(name.count(".") <= len(parts) for name in wanted):
            return
        start = len(".".join(parts)) + 1
        yield Naming(f"those of the part {'.'.join(parts)}", {name: name[start:] for name in wanted})


def _chunked(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Iterator[Naming]:
    """Names the blocks as DINOv2 and DINOv3 do in chunks: block 3 of chunk 0 is `blocks.0.3`."""
    chunks = {match[2]: match[1] for name in state if (match := _CHUNKED.search(name))}
    if chunks:
        names = {
            name: re.sub(r"\bblocks\.(\d+)\.", lambda match: f"blocks.{chunks.get(match[1], '')}.{match[1]}.", name)
            for name in wanted
        }
        yield Naming("blocks in chunks", names)


def _numbered(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Iterator[Naming]:
    """Names the backbone's parts by their numbers, as nn.Sequential(*backbone.children()) does, also in nested ones.

    Every part, in the order of the modules, is the next number that has its tensors by name and shape.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in wanted.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    for root in dict.fromkeys(name[: match.start()] for name in state for match in _NUMBER.finditer(name)):
        numbers = _numbers_of(parts, root, {name: state[name] for name in state if name.startswith(root)})
        if numbers is not None:
            names = {name: f"{numbers[name.partition('.')[0]]}.{name.partition('.')[2]}" for name in wanted}
            yield Naming("modules by number, in their order", names)


def _numbers_of(
    parts: Mapping[str, Mapping[str, Tensor]], root: str, state: Mapping[str, Tensor]
) -> dict[str, str] | None:
    """Returns the number, such as `4` or `0.1`, of each part under a prefix; None if there is none for one."""
    order, numbers, start = list(state), {}, 0
    for part, tensors in parts.items():
        needed = {rest: tensor.shape for rest, tensor in tensors.items() if not is_counter(rest)}
        first = next(iter(needed), "")
        for position in range(start, len(order) if first else 0):
            number = order[position].removeprefix(root).removesuffix(f".{first}")
            if _NUMBERS.fullmatch(number) and _shapes(state, f"{root}{number}.", needed) == needed:
                numbers[part] = number
                start = position + 1
                break
        else:
            return None
    own = tuple(f"{root}{number}." for number in numbers.values())
    between = (name for name in order[:start] if name.removeprefix(root)[:1].isdigit())
    return numbers if all(name.startswith(own) for name in between) else None


def _shapes(state: Mapping[str, Tensor], prefix: str, names: Iterable[str]) -> dict[str, Size]:
    return {name: state[prefix + name].shape for name in names if prefix + name in state}
