"""What a run comes to; and the run with nothing to do, found out without torch, as importing that takes longer."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from embedx import sample
from embedx.config import ExtractConfig
from embedx.data.plan import Plan, build_plan
from embedx.data.sources import parse_data
from embedx.data.sources.base import SourceOptions
from embedx.errors import StoreError
from embedx.store.layout import MANIFEST
from embedx.store.manifest import Manifest
from embedx.store.session import StoreSession

_WITHOUT_EFFECT = frozenset({"workers", "threads", "on_error", "timeout", "max_pixels", "max_errors", "update"})
"""Settings that change nothing of a store which is complete."""
_OF_THE_MACHINE = frozenset({"python", "device", "cores", "threads"})
"""What an environment tells beside versions of packages."""


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


def list_inputs(config: ExtractConfig) -> Plan:
    """The plan of the settings' inputs; without any, of the bundled sample's.

    Raises:
        ConfigError: Naming every fault of the sources.
    """
    sources = parse_data(config.data or [str(sample.IMAGES)], SourceOptions.of(config))
    return build_plan(sources, config.group_key)


def look_for_work(config: ExtractConfig) -> tuple[Summary | None, Plan | None]:
    """Whether the store is complete, of the same settings, versions, weights' file and inputs.

    Returns:
        A summary if so, which says that it is up to date; None if it isn't, or only a whole run can tell. And the
        inputs, if they had to be listed for it.

    Raises:
        ConfigError: If the inputs can't be listed.
        StoreLockedError: If another run holds the store.
    """
    started = time.perf_counter()
    if config.faults():
        return None, None  # for a whole run to tell, beside all others
    try:
        manifest = Manifest.read(config.out)
    except StoreError:
        return None, None
    if not (manifest.complete and _is_of(config, manifest)):
        return None, None
    plan = list_inputs(config)
    now = dataclasses.replace(manifest, plan=plan.to_json(manifest.plan["rows_per_unit"]))
    if now.plan != manifest.plan:
        return None, plan
    session = StoreSession.begin(config.out, now, mode="resume")
    session.close()
    if session.needs_comparison or not session.is_finished:
        return None, plan
    seconds = time.perf_counter() - started
    return Summary(config.out / MANIFEST, manifest.totals, True, None, seconds, manifest.timings), plan


def _is_of(config: ExtractConfig, manifest: Manifest) -> bool:
    """Whether a store was made by these settings, and what they name is what it was, as far as files can tell."""
    if config.overwrite or config.retry_rejected:
        return False
    then, now = ({**settings, **dict.fromkeys(_WITHOUT_EFFECT)} for settings in (manifest.settings, config.to_json()))
    return then == now and _weights_stand(config, manifest) and _versions_stand(manifest)


def _weights_stand(config: ExtractConfig, manifest: Manifest) -> bool:
    """Whether the weights are those of the recipe; code and repositories, which may change, are not looked into."""
    for file in (config.checkpoint, Path(config.backbone)):
        if file is not None and file.is_file():
            with file.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            return bool((manifest.recipe["weights"] or {}).get("sha256") == digest)
    return ":" not in config.backbone


def _versions_stand(manifest: Manifest) -> bool:
    last = [manifest.environment, *manifest.later_environments][-1]
    try:
        return all(last[name] == version(name) for name in last if name not in _OF_THE_MACHINE)
    except PackageNotFoundError:
        return False
