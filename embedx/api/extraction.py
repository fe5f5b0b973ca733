"""`embedx.extract`: the command `embedx extract` as a function."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from embedx.api.arguments import config_of, specs_of
from embedx.api.shown_progress import heartbeat_of
from embedx.config import ExtractConfig
from embedx.distribute.entry import run_extraction
from embedx.store.reading.reader import Store
from embedx.system.signals import interrupts_deferred

Location = str | os.PathLike[str]


def extract(
    data: Location | Sequence[Location] | Mapping[str, Location | Sequence[Location]] | None = None,
    *,
    backbone: str,
    out: Location,
    progress: bool = True,
    **settings: Any,
) -> Store:
    """Runs a backbone over images, stores the embeddings, and returns the store; finishes what is missing of one.

    It is `embedx extract`: the same settings, checks, messages and bytes. An interrupted call (Ctrl-C raises
    KeyboardInterrupt) is continued by the same call.

    Args:
        data: The inputs: a path, pattern or URL, a list of them, or a dict of them by split. None takes the bundled
            sample images.
        backbone: The name of the backbone, as for `--backbone`.
        out: The folder of the store.
        progress: Whether progress and notices are shown, on stderr or in a notebook's cell.
        **settings: The other settings, by ExtractConfig's names, which are those of the options with `_` for `-`:
            `group_key="class"`, `batch_size=64`, `update=True`.

    Returns:
        The complete store, as `embedx.open(out)` returns it.

    Raises:
        ConfigError: If a setting, a file or a path has to change first; it names every fault.
        TooManyRejectedError: If inputs are unavailable, or more are rejected than `max_errors` (default 0) allows. The
            store is complete then, and `embedx.open(out)` reads it.
        StoreLockedError: If another run holds the store.
        EmbedxError: If the run fails otherwise; what it has computed is kept for the next call.
    """
    config = config_of({"data": specs_of(data), "backbone": backbone, "out": out, **settings}, ExtractConfig)
    if (summary := run_extraction(config, heartbeat_of(progress), interrupts_deferred())) is not None:
        summary.check_inputs(config)
    return Store.open(config.out)
