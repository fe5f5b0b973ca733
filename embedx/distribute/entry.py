"""The way into an extraction, for the command line and for Python: the fast path, or torch and the whole run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

from embedx.config import ExtractConfig
from embedx.distribute.ranks import Rank, rank_of
from embedx.errors import ConfigError, MemberError
from embedx.heartbeat import Heartbeat
from embedx.paths import BucketPath
from embedx.store.format.layout import MANIFEST, is_there, store_root
from embedx.system.processes import start_fork_server
from embedx.system.temporary import clear_killed_runs

if TYPE_CHECKING:
    from embedx.distribute.member_link import Engine
    from embedx.distribute.rendezvous import Reception
    from embedx.run.summary import Summary


def run_extraction(
    config: ExtractConfig, heartbeat: Heartbeat, importing: AbstractContextManager[object] | None = None
) -> Summary | None:
    """Finishes a store, or tells without importing torch that it is up to date.

    Args:
        config: The settings of the run.
        heartbeat: The receiver of progress and notices.
        importing: The context in which torch, and all that computes, is imported.

    Returns:
        The summary; None in a process of a launcher that is not the driver's.

    Raises:
        EmbedxError: As `embedx.run.extract.extract` does; a MemberError where the driver has failed.
    """
    rank = rank_of(os.environ)
    with heartbeat:
        if rank is not None and config.engine != "local":
            raise ConfigError(
                f"--engine {config.engine} starts processes on other machines, and so did the launcher of this one, "
                f"which is one of {rank.world}; start one, or drop --engine"
            )
        if rank is not None and rank.number > 0:
            _join(config, rank, heartbeat, importing)
            return None
        with _reception(config, rank) as reception:
            return _run(config, heartbeat, importing, rank, reception)


def _run(
    config: ExtractConfig,
    heartbeat: Heartbeat,
    importing: AbstractContextManager[object] | None,
    rank: Rank | None,
    reception: Reception | None,
) -> Summary:
    plan = None
    if isinstance(config.out, BucketPath) and not config.faults():
        from embedx.store.writing.bucket_hold import check_bucket

        heartbeat.say("asking the bucket")
        check_bucket(config.out)
    if is_there(store_root(config.out), MANIFEST):
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
    heartbeat.say("finding the devices")
    with _engine(config, rank, reception, heartbeat) as (device, engine):
        members = None
        if engine is not None:
            from embedx.distribute.driver import compute_by

            members = partial(compute_by, engine)
        return extract(dataclasses.replace(config, device=device), heartbeat, plan, members)


@contextlib.contextmanager
def _engine(
    config: ExtractConfig, rank: Rank | None, reception: Reception | None, heartbeat: Heartbeat
) -> Iterator[tuple[str, Engine | None]]:
    """Finds what starts the members, and their first device; there is no such thing if this process computes alone."""
    if config.engine == "ray":
        from embedx.distribute.ray_members import RayMembers

        with contextlib.closing(RayMembers(config, heartbeat.tell)) as engine:
            yield engine.device, engine
        return
    from embedx.distribute.devices import resolve_devices
    from embedx.distribute.launched import LaunchedMembers
    from embedx.distribute.local import LocalMembers

    devices = resolve_devices(config, rank)
    local = LocalMembers(devices, sharers=1 if rank is None else rank.local_count)
    if reception is not None:
        yield devices[0], LaunchedMembers(local, reception)
    else:
        yield devices[0], local if len(devices) > 1 else None


@contextlib.contextmanager
def _reception(config: ExtractConfig, rank: Rank | None) -> Iterator[Reception | None]:
    """Lets members of a launcher's other processes in, and tells them in the end how the run has ended."""
    if rank is None:
        yield None
        return
    from embedx.distribute.rendezvous import MeetingPlace, Reception

    place, code = MeetingPlace(config.out.resolve(), rank.job), 1
    with contextlib.closing(Reception()) as reception:
        place.announce(reception.meeting)
        try:
            yield reception
            code = 0
        except BaseException as error:
            code = getattr(error, "exit_code", 1)
            raise
        finally:
            place.leave_word(code)


def _join(
    config: ExtractConfig, rank: Rank, heartbeat: Heartbeat, importing: AbstractContextManager[object] | None
) -> None:
    """Runs this process's members.

    Raises:
        MemberError: If the run has failed; the driver tells why.
    """
    start_fork_server()
    with importing or contextlib.nullcontext():
        from embedx.distribute.devices import resolve_devices
        from embedx.distribute.launched import join
    devices = resolve_devices(config, rank)
    if not join(config.out.resolve(), rank, devices, config.threads, config.workers, heartbeat.say):
        raise MemberError("the driver (rank 0) of this job has failed or is gone; its messages tell why")
