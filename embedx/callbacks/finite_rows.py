"""Finds the rows that are not finite, or no longer are in the stored type, and words why.

One number a row tells: its largest absolute value before the cast, NaN if the row has one. It is computed where the
outputs are, and travels with them. A row's numbers themselves are looked at only where that one is suspicious.

Shapes: n rows of a batch.
"""

from __future__ import annotations

import cmath
import dataclasses
import enum
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from embedx.callbacks.rows_table import reject
from embedx.store.format.index import OK
from embedx.store.format.shards import dtype_name

_PREFIX = "\0largest of "
_PIECE = 1 << 14
"""The values that are added up at a time: of more, torch would share the work with threads that others hold up."""


class Cause(enum.Enum):
    """The step that lost a row's numbers; the value is the advice to a user."""

    FORWARD = "check the weights and the inputs, and give --precision fp32 if it is another"
    STORED_TYPE = "--dtype float32 holds larger numbers"
    LENGTH = "leave out --normalize"


class NotFinite(NamedTuple):
    """A row that is not stored."""

    key: str
    cause: Cause
    reason: str


def ignore_batch(rows: int, found: list[NotFinite]) -> None:
    """Does nothing with a batch's rows that are not finite."""


@dataclasses.dataclass(frozen=True)
class FiniteCheck:
    """The check of a store's rows."""

    origin: str = "the forward pass"
    """The words for what computes the rows."""
    unit_length: bool = False
    """True if rows were scaled to unit length, so that one of zeros had none, or one that is beyond float32."""
    tell: Callable[[int, list[NotFinite]], None] = ignore_batch
    """Hears of each batch: how many rows were checked, and those that are not finite."""

    def with_largest(self, outputs: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Adds to the tensors to store each row's largest absolute value [n] before the cast, by name.

        On the CPU the sum of all values tells sooner that none is suspicious; a device would have to be waited for.
        """
        floats = {name: value for name, value in outputs.items() if value.is_floating_point() or value.is_complex()}
        if not self.unit_length and all(_has_finite_sum(stored[name]) for name in floats):
            return dict(stored)
        return {**stored, **{f"{_PREFIX}{name}": _largest(value) for name, value in floats.items()}}

    def judged(self, rows: pa.Table, tensors: dict[str, Tensor]) -> pa.Table:
        """Takes the largest values out of a batch's tensors, on the host by now, and rejects rows by them.

        Args:
            rows: The rows' identities; those that are rejected already are not judged.
            tensors: The tensors that `with_largest` returned; those to store are left.

        Returns:
            The rows' identities, each row that is not finite with the reason of its rejection.
        """
        faults: dict[int, tuple[Cause, str]] = {}
        for name in [name for name in tensors if not name.startswith(_PREFIX)]:
            if (largest := tensors.pop(f"{_PREFIX}{name}", None)) is not None:
                faults = {**self._faults(name, tensors[name], largest.tolist()), **faults}
        if not faults:
            self.tell(len(rows), [])
            return rows
        taken = [status == OK for status in rows["status"].to_pylist()]
        found = {row: NotFinite(rows["key"][row].as_py(), *faults[row]) for row in sorted(faults) if taken[row]}
        self.tell(sum(taken), list(found.values()))
        return reject(rows, {row: one.reason for row, one in found.items()})

    def _faults(self, name: str, stored: Tensor, largest: list[float]) -> dict[int, tuple[Cause, str]]:
        """Returns what is wrong with the rows of one tensor that are not finite."""
        limit = torch.finfo(stored.dtype).max
        least = 0.5 / math.sqrt(stored[0].numel()) if self.unit_length else 0.0
        suspects = [row for row, value in enumerate(largest) if not least <= value <= limit]
        faults = {row: self._fault(name, stored[row], largest[row]) for row in suspects}
        return {row: fault for row, fault in faults.items() if fault is not None}

    def _fault(self, name: str, stored: Tensor, value: float) -> tuple[Cause, str] | None:
        """Returns why a suspicious row is not finite; None for a number that is just rounded to the type's largest."""
        total, wrong = stored.numel(), int((~_computable(stored).isfinite()).sum())
        dtype, limit = dtype_name(stored.dtype), torch.finfo(stored.dtype).max
        if not math.isfinite(value):
            kind = "NaN" if math.isnan(value) else "infinity"
            values = f"{wrong:,} of {total:,} values" if total > 1 else "the value"
            verb = "are" if wrong > 1 else "is"
            return Cause.FORWARD, f"{self.origin} gave {kind}: {values} of {name!r} {verb} not finite"
        if wrong:
            wider = " (stored as float32 it fits)" if value <= torch.finfo(torch.float32).max else ""
            return Cause.STORED_TYPE, (
                f"beyond {dtype}, which ends at {limit:g}: the largest value of {name!r} is {value:g}{wider}"
            )
        if self.unit_length and value < limit:
            return (
                Cause.LENGTH,
                f"{name!r} has no unit length: its features are all 0, or too large or too small for it",
            )
        return None


FINITE_CHECK = FiniteCheck()
"""The check of rows that a forward pass computes, whose results nobody else hears of."""


def _has_finite_sum(values: Tensor) -> bool:
    """Tells whether the sum shows that all values are finite; False also for those on another device than the CPU."""
    if values.device.type != "cpu":
        return False
    dtype = torch.float32 if values.dtype.itemsize < 4 else None
    total = sum(part.sum(dtype=dtype).item() for part in _computable(values).flatten().split(_PIECE))
    return cmath.isfinite(total)


def _computable(values: Tensor) -> Tensor:
    """Returns the values in a type that torch computes with, which those of 8 bits are not."""
    return values.float() if values.dtype.itemsize == 1 else values


def _largest(values: Tensor) -> Tensor:
    """Returns the largest absolute value [n] of each row; NaN for a row that has one."""
    sizes = _computable(values.detach()).abs()
    return sizes.amax(tuple(range(1, sizes.ndim))) if sizes.ndim > 1 else sizes
