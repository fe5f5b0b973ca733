"""The summary of a run."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from embedx.config import ExtractConfig
from embedx.errors import TooManyRejectedError
from embedx.paths import StorePath
from embedx.store.format.contents import SplitTotals
from embedx.values import count_text

_VERDICTS = {
    "loader_wait": "decode-bound: the model waited {share} of the time",
    "copy": "transfer-bound: bringing batches to the GPU, or decoding them there, took {share} of the time",
    "forward": "compute-bound: the model ran {share} of the time",
    "writer_wait": "disk-bound: the writer was waited for {share} of the time",
}
"""The verdict for each part of the loop that can take most of the time."""


_REMEDIES = {
    "loader_wait": ("more --workers", "--decoder cuda", "a faster disk"),
    "copy": ("a larger --batch-size", "--decoder cpu"),
    "forward": ("--precision bf16", "another --runtime", "a GPU"),
    "writer_wait": ("--dtype float16", "a faster disk"),
}
"""The advice for each part, of which a verdict gives what the run did not do."""


def _can_help(remedy: str, ran_on: Mapping[str, str | int]) -> bool:
    """Tells whether a remedy is not what the run did already, nor beyond its device."""
    device = str(ran_on.get("device", "cpu"))
    if remedy == "--precision bf16":
        import torch  # a run with nothing to do needs none of it

        from embedx.models.device import has_bf16

        return ran_on.get("precision") not in ("bf16", "fp16") and has_bf16(torch.device(device))
    if remedy == "--decoder cuda":
        return device != "cpu" and ran_on.get("decoder") == "cpu"
    if remedy == "--decoder cpu":
        return ran_on.get("decoder") == "cuda"
    return remedy != "a GPU" or device == "cpu"


@dataclasses.dataclass(frozen=True)
class Summary:
    """The result of a run."""

    manifest: StorePath
    """The path of the store's manifest."""
    totals: dict[str, SplitTotals]
    """The store's counts per split: inputs, rows, rejected, unavailable, units, shards, bytes."""
    up_to_date: bool
    """True if there was nothing to do."""
    changes: dict[str, int] | None
    """The counts of inputs that were new, changed and so on, if the store was updated."""
    seconds: float
    """The duration of the run."""
    timings: dict[str, float]
    """The seconds and rates of the run that completed the store, by name."""
    ran_on: dict[str, str | int] = dataclasses.field(default_factory=dict)
    """The device, precision, runtime, decoder, threads (on a CPU), workers and batch_size; empty if none was used."""
    kept: tuple[str, ...] = ()
    """The splits that the run did not name, and that stay as they are."""

    @property
    def rows(self) -> int:
        """The number of rows in the store."""
        return sum(split.rows for split in self.totals.values())

    @property
    def rejected(self) -> int:
        """The number of rejected inputs in the store."""
        return sum(split.rejected for split in self.totals.values())

    @property
    def unavailable(self) -> int:
        """The number of inputs in the store that the machine or the network did not give."""
        return sum(split.unavailable for split in self.totals.values())

    @property
    def profile(self) -> dict[str, dict[str, float]]:
        """The seconds that the loop spent on each of its parts, per split."""
        found: dict[str, dict[str, float]] = {}
        for name, seconds in self.timings.items():
            part, _, split = name.partition("_seconds/")
            if split:
                found.setdefault(split, {})[part] = seconds
        return found

    @property
    def trial(self) -> dict[str, tuple[float, float]]:
        """The images per second of each runtime that was tried, and the seconds of building it; empty if none was."""
        begin = "trial_images_per_second/"
        rates = {name.removeprefix(begin): rate for name, rate in self.timings.items() if name.startswith(begin)}
        return {name: (rate, self.timings.get(f"trial_seconds_to_build/{name}", 0.0)) for name, rate in rates.items()}

    @property
    def verdict(self) -> str:
        """A sentence that names the slowest part of the run and a remedy; empty if nothing was computed."""
        parts = Counter[str]()
        for split in self.profile.values():
            parts.update(split)
        most = max(_VERDICTS, key=parts.__getitem__)
        if not parts[most]:
            return ""
        told = _VERDICTS[most].format(share=f"{parts[most] / parts.total():.0%}")
        remedies = [remedy for remedy in _REMEDIES[most] if _can_help(remedy, self.ran_on)]
        return f"{told}; give {' or '.join(remedies)}"

    def check_inputs(self, config: ExtractConfig) -> None:
        """Checks that all inputs gave a row, or that those which did not are allowed.

        Raises:
            TooManyRejectedError: If some are unavailable, or more are rejected than `--max-errors` allows.
        """
        lists = f"`embedx info {config.out} --{{}}` lists them with their reasons"
        told = []
        if self.unavailable:
            told.append(
                f"{count_text(self.unavailable, 'input')} unavailable, by the fault of disk or network; the same "
                f"command tries again, and {lists.format('unavailable')}"
            )
        if self.rejected > config.max_errors:
            told.append(
                f"{count_text(self.rejected, 'input')} rejected, and --max-errors allows {config.max_errors}; the "
                f"store is complete, and {lists.format('rejected')}"
            )
        if told:
            raise TooManyRejectedError("; ".join(told))

    def to_json(self) -> dict[str, Any]:
        """Returns the summary as plain JSON values."""
        return {
            "manifest": str(self.manifest),
            "up_to_date": self.up_to_date,
            "rows": self.rows,
            "rejected": self.rejected,
            "unavailable": self.unavailable,
            "changes": self.changes,
            "kept": self.kept,
            "seconds": round(self.seconds, 3),
            "splits": {
                name: {**totals.to_json(), "unavailable": totals.unavailable} for name, totals in self.totals.items()
            },
            "means": self.ran_on,
            "timings": self.timings,
            "verdict": self.verdict,
        }


def describe_counts(counts: Mapping[str, int], examples: Mapping[str, str] = {}) -> str:
    """Returns the counts that are not zero in words, each followed by its example, such as ` (such as 'a.jpg')`."""
    told = {name.replace("_", " "): (count, examples.get(name, "")) for name, count in counts.items() if count}
    return ", ".join(f"{count:,} {name}{example}" for name, (count, example) in told.items())
