"""Answers "up to date" without importing torch, which takes longer than the answer."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from embedx.config import ExtractConfig
from embedx.data.plan import Plan
from embedx.errors import StoreError
from embedx.run.inputs import list_inputs
from embedx.run.summary import Summary
from embedx.store.format.layout import MANIFEST
from embedx.store.format.manifest import Manifest
from embedx.store.writing.session import StoreSession

_WITHOUT_EFFECT = frozenset({"workers", "threads", "on_error", "timeout", "max_pixels", "max_errors", "update"})
"""Settings that change nothing of a store which is complete."""
_OF_THE_MACHINE = frozenset({"python", "device", "cores", "threads"})
"""What an environment tells beside versions of packages."""


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
