"""The fast path: answers "up to date" without importing torch, which would take longer than the answer."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from importlib.metadata import PackageNotFoundError, version
from itertools import starmap
from pathlib import Path

from embedx.config import ExtractConfig
from embedx.data.plan import Plan
from embedx.errors import StoreError
from embedx.heartbeat import SILENT, Heartbeat
from embedx.recipe import canonical_json
from embedx.run.inputs import list_inputs
from embedx.run.retries import is_tried_again
from embedx.run.summary import Summary
from embedx.store.format.contents import PlanTerms
from embedx.store.format.layout import MANIFEST
from embedx.store.format.manifest import Manifest
from embedx.store.writing.session import StoreSession

_WITHOUT_EFFECT = dict.fromkeys(
    [
        *("workers", "threads", "reads", "on_error", "timeout", "max_pixels", "max_bytes", "max_errors"),
        *("max_unavailable", "data", "update", "max_gone", "verify_kept", "allow_nonfinite"),
    ]
)
"""The settings that change nothing in a complete store of the same inputs."""

_OLD_BATCH_SIZE = 32
"""The batch size that stores state which were made by default, when that was a number."""


def look_for_work(config: ExtractConfig, heartbeat: Heartbeat = SILENT) -> tuple[Summary | None, Plan | None]:
    """Checks that the store is complete and that settings, versions, weights and inputs are the same as then.

    Returns:
        The summary "up to date" if they are; None if they aren't, or if only a whole run can tell. Beside it the
        inputs, if they were listed.

    Raises:
        ConfigError: If the inputs can't be listed.
        StoreLockedError: If another run holds the store.
    """
    started = time.perf_counter()
    if config.faults():
        return None, None  # the whole run names them, together with all other faults
    try:
        manifest = Manifest.read(config.out)
    except StoreError:
        return None, None
    if not (manifest.complete and _was_made_with(config, manifest)):
        return None, None
    plan = list_inputs(config, heartbeat)
    terms = PlanTerms.from_json(plan.to_json(manifest.plan.rows_per_unit or 1))
    kept = {name: stored for name, stored in manifest.plan.splits.items() if name not in plan.splits}
    terms = dataclasses.replace(terms, splits={**terms.splits, **kept})
    now = dataclasses.replace(manifest, plan=terms)
    if now.plan != manifest.plan:
        return None, plan
    session = StoreSession.begin(config.out, now, mode="resume", verify_kept=config.verify_kept)
    session.close()
    for damage in session.checks.told if not session.needs_comparison else ():  # else the whole run finds and tells it
        heartbeat.tell(damage)
    if (
        session.needs_comparison
        or not session.is_finished
        or any(starmap(is_tried_again, session.checks.failures(session.out)))
    ):
        return None, plan
    seconds = time.perf_counter() - started
    timings = manifest.timings
    return Summary(config.out / MANIFEST, manifest.totals, True, None, seconds, timings, kept=tuple(kept)), plan


def _was_made_with(config: ExtractConfig, manifest: Manifest) -> bool:
    """Tells whether a store was made with these settings, the same weights and the same package versions."""
    if config.overwrite or config.retry_rejected or config.drop_split:
        return False
    fields = [field for field in dataclasses.fields(config) if field.default is not dataclasses.MISSING]
    defaults = {field.name: field.default for field in fields}  # of settings that are newer than the store
    then, now = defaults | manifest.settings.to_json() | _WITHOUT_EFFECT, config.to_json() | _WITHOUT_EFFECT
    if config.batch_size is None and then["batch_size"] == _OLD_BATCH_SIZE:
        then["batch_size"] = None
    same = canonical_json(then) == canonical_json(now)
    return same and _weights_are_same(config, manifest) and _versions_are_same(manifest)


def _weights_are_same(config: ExtractConfig, manifest: Manifest) -> bool:
    """Tells whether the weights are the recipe's; False for code and repositories, which can't be checked here."""
    for file in (config.checkpoint, config.backbone):
        if file is not None and Path(file).is_file():
            with Path(file).open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            return manifest.recipe.weights_sha256 == digest
    return config.checkpoint is None and ":" not in config.backbone


def _versions_are_same(manifest: Manifest) -> bool:
    last = [manifest.environment, *manifest.later_environments][-1]
    try:
        return all(version(package) == then for package, then in last.packages.items())
    except PackageNotFoundError:
        return False
