"""The way into an extraction, for the command line and for Python: the fast path, or torch and the whole run."""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from embedx.config import ExtractConfig
from embedx.heartbeat import Heartbeat
from embedx.store.format.layout import MANIFEST
from embedx.system.processes import start_fork_server
from embedx.system.temporary import clear_killed_runs

if TYPE_CHECKING:
    from embedx.run.summary import Summary


def run_extraction(
    config: ExtractConfig, heartbeat: Heartbeat, importing: AbstractContextManager[object] | None = None
) -> Summary:
    """Finishes a store, or tells without importing torch that it is up to date.

    Args:
        config: The settings of the run.
        heartbeat: The receiver of progress and notices.
        importing: The context in which torch, and all that computes, is imported.

    Raises:
        EmbedxError: As `embedx.run.extract.extract` does.
    """
    plan = None
    with heartbeat:
        if os.path.lexists(config.out / MANIFEST):
            from embedx.run.up_to_date import look_for_work

            heartbeat.say("listing the inputs")
            summary, plan = look_for_work(config, heartbeat)
            if summary is not None:
                clear_killed_runs()
                return summary
        heartbeat.say("starting")
        start_fork_server()
        with importing or contextlib.nullcontext():
            from embedx.run.extract import extract
        return extract(config, heartbeat, plan)
