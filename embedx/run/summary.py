"""The summary of a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

_VERDICTS = {
    "loader_wait": "decode-bound: the model waited {share} of the time; give more --workers, "
    "a faster disk, or on a GPU --decoder cuda",
    "copy": "bound by bringing batches to the GPU, or decoding them there: that took {share} of the time; "
    "give a larger --batch-size, or --decoder cpu",
    "forward": "compute-bound: the model ran {share} of the time; --precision bf16, another --runtime or a GPU help",
    "writer_wait": "disk-bound: the writer was waited for {share} of the time; give --dtype fp16, or a faster disk",
}
"""By what the loop spent most of its time on."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run has done."""

    manifest: Path
    totals: dict[str, dict[str, int]]
    """Per split: inputs, rows, rejected, units, shards, bytes."""
    up_to_date: bool
    """Whether there was nothing to do."""
    changes: dict[str, int] | None
    """What was different from the store that was there, as counts of inputs, where it was brought up to date."""
    seconds: float
    timings: dict[str, float]
    means: dict[str, str | int] = dataclasses.field(default_factory=dict)
    """What computed: device, runtime, threads (of a CPU), workers, batch_size; empty if nothing was computed."""

    @property
    def rows(self) -> int:
        """Rows in the store."""
        return sum(split["rows"] for split in self.totals.values())

    @property
    def rejected(self) -> int:
        """Rejected inputs in the store."""
        return sum(split["rejected"] for split in self.totals.values())

    @property
    def profile(self) -> dict[str, dict[str, float]]:
        """Per split, the seconds that the loop spent on each of its parts."""
        found: dict[str, dict[str, float]] = {}
        for name, seconds in self.timings.items():
            part, _, split = name.partition("_seconds/")
            if split:
                found.setdefault(split, {})[part] = seconds
        return found

    @property
    def verdict(self) -> str:
        """What the run waited for most, and what could be done about it; empty if nothing was computed."""
        parts: dict[str, float] = {}
        for of_split in self.profile.values():
            for part, seconds in of_split.items():
                parts[part] = parts.get(part, 0.0) + seconds
        total = sum(parts.values())
        most = max(_VERDICTS, key=lambda part: parts.get(part, 0.0))
        if not total or not parts.get(most):
            return ""
        return _VERDICTS[most].format(share=f"{parts[most] / total:.0%}")

    def to_json(self) -> dict[str, Any]:
        """The summary as plain JSON values."""
        return {
            "manifest": str(self.manifest),
            "up_to_date": self.up_to_date,
            "rows": self.rows,
            "rejected": self.rejected,
            "changes": self.changes,
            "seconds": round(self.seconds, 3),
            "splits": self.totals,
            "means": self.means,
            "timings": self.timings,
            "verdict": self.verdict,
        }
