"""The messages between the driver and a member, each a typed tuple that is sent pickled over a connection."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from embedx.config import ExtractConfig
from embedx.data.plan import Plan
from embedx.errors import EmbedxError
from embedx.store.format.contents import Environment
from embedx.store.format.layout import StoreRoot, StoreTerms, Unit
from embedx.store.format.manifest import Manifest
from embedx.store.writing.unit_rows import EarlierRows
from embedx.values import Precision


class Setup(NamedTuple):
    """The first message of the driver: all that determines a member's run but its units."""

    config: ExtractConfig
    """The settings, with the device, the threads and the workers of this member."""
    plan: Plan
    """The plan without its inputs, which are in files."""
    root: StoreRoot
    """The folder of the store, which has these files."""
    retried: Mapping[str, Collection[int]]
    """The rows of each split that an earlier run has tried and rejected."""
    precision: Precision
    batch_size: int
    runtime: str
    verbose: bool
    """True if each input without a row is told."""
    host: str
    """The name of the driver's machine."""


class Ready(NamedTuple):
    """The answer of a member that has built its model."""

    recipe: Mapping[str, Any]
    """The recipe of the rows that it will compute, as JSON."""
    environment: Mapping[str, Any]
    """The versions and the hardware, as in the index tables."""


class Begin(NamedTuple):
    """The store to be written."""

    terms: StoreTerms
    manifest: Manifest
    threads: int
    """The number of threads whose bits are those of the store."""


class TryOut(NamedTuple):
    """The task of settling the precision and the runtime by the first batches of some rows; these are dropped."""

    split: str
    rows: Sequence[int]
    """The rows of the plan."""
    batches: int
    """The number of batches that a member will compute, roughly."""
    rivals: tuple[str, ...]
    may_take_bf16: bool


class Settled(NamedTuple):
    """The answer to `TryOut`."""

    precision: Precision
    runtime: str
    environment: Environment
    """The versions and the hardware that compute, for the manifest."""
    measured: Mapping[str, float]
    """The measurements, for the timings."""


class Ask(NamedTuple):
    """A member's question for a unit."""

    split: str | None
    """The split that the member goes on with; it is told at once if there is none. None: it is idle, and waits."""


class Order(NamedTuple):
    """A unit that a member is to compute."""

    unit: Unit
    rows: Sequence[int]
    """The rows of the plan to be computed."""
    earlier: Sequence[EarlierRows]
    """The rows of the unit that need not be computed."""


class NoneNow(NamedTuple):
    """The answer if there is no unit in the split."""


class End(NamedTuple):
    """The last message of the driver."""

    is_complete: bool
    """True if all units are committed, and False if the run is given up."""


class Committed(NamedTuple):
    """A unit that stands on disk, by this member's doing or by another's."""

    unit: Unit


class Progress(NamedTuple):
    """The progress of a member since its last message of this kind."""

    split: str
    inputs: int
    rejected: int
    unavailable: int
    example: str
    """One of these, and why."""


class Said(NamedTuple):
    """A line for the user."""

    text: str
    style: str | None
    is_detail: bool = False
    """True if only a verbose run has the line."""


class RoundOver(NamedTuple):
    """A member has committed all units that it was given."""

    timings: Mapping[str, float]
    """The seconds and counts of the round, by the names that `Throughput` gives them."""


class Failed(NamedTuple):
    """The last message of a member that can't go on."""

    error: EmbedxError
