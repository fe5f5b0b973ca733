"""The timings of a run by several members."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

from torch import nn

from embedx.engine.callback import Callback
from embedx.engine.state import Metrics, TrainerState

_PARTS = ("loader_wait", "copy", "forward", "writer_wait", "callbacks")
"""The beginnings of the names of timings that are summed over the members."""


class MemberTimings(Callback):
    """Sums the members' timings, and returns them as metrics, as `Throughput` does those of one process."""

    def __init__(self) -> None:
        super().__init__()
        self._sums = Counter[str]()
        self._of_members: dict[str, Counter[str]] = {}
        self._began = self._first_rows = 0.0
        self.further: Mapping[str, float] = {}
        """Other measurements, by name."""

    @property
    def has_begun(self) -> bool:
        """True once the first member was ready."""
        return self._began > 0

    def begin(self) -> None:
        """Starts the clock."""
        self._began = time.perf_counter()

    def note_rows(self) -> None:
        """Notes that rows were computed."""
        self._first_rows = self._first_rows or time.perf_counter()

    def add(self, member: str, timings: Mapping[str, float]) -> None:
        """Adds the timings of a member's round, by the names that `Throughput` gives them."""
        self._sums.update(timings)
        self._of_members.setdefault(member, Counter()).update(timings)

    def on_test_epoch_end(self, trainer_state: TrainerState, model: nn.Module) -> Metrics:
        """Returns the sums, the images per second of all members together, and those of each."""
        seconds = time.perf_counter() - self._began if self.has_begun else 0.0
        inputs = self._sums["inputs"]
        rates = {
            f"images_per_second/{name}": round(sums["inputs"] / sums["seconds"], 2)
            for name, sums in sorted(self._of_members.items())
            if sums["seconds"]
        }
        return {
            "inputs": inputs,
            "seconds": round(seconds, 3),
            "first_batch_seconds": round(max(0.0, self._first_rows - self._began), 3),
            "images_per_second": round(inputs / seconds, 2) if seconds else 0.0,
            **{name: round(value, 3) for name, value in self._sums.items() if name.startswith(_PARTS)},
            **rates,
            **self.further,
        }
