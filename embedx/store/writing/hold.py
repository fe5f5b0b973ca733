"""The part of a store's session that a writer needs, which a member of a run has of the driver's session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from embedx.store.format.layout import StoreTerms, Unit
from embedx.store.format.manifest import Manifest
from embedx.store.writing.unit_rows import EarlierUnits


class StoreHold(Protocol):
    """A hold of a store that is written; another process may have begun it, and finish it."""

    earlier: EarlierUnits
    """The rows that need not be computed, of units that are still to be written."""
    manifest: Manifest

    @property
    def terms(self) -> StoreTerms:
        """The terms of the store, as the writer process needs them."""

    def set_rows_per_unit(self, rows: int) -> None:
        """States the size of the units, where it was not known when the store was begun."""

    def on_commit(self, unit: Unit) -> None:
        """Notes a unit that the writer process has committed."""

    def finish(self, timings: Mapping[str, float]) -> Manifest:
        """Declares that all that was to be written is committed, with the timings of the run."""

    def close(self) -> None:
        """Gives the store back."""
