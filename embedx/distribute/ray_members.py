"""Members in a Ray cluster: an actor for each GPU, or for the CPUs of a node, whose child process is the member.

Ray starts the actors, and knows the nodes. Units are handed out over the members' own connections, as to those of any
launcher, so that nothing waits for one actor, or for its node.
"""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from embedx.config import ExtractConfig
from embedx.distribute.launched import Newcomers
from embedx.distribute.member_link import MemberLink
from embedx.distribute.messages import Setup
from embedx.distribute.rendezvous import Reception
from embedx.errors import ConfigError, EmbedxError, MemberError
from embedx.run.job import Job

_LOOK_SECONDS = 1.0
"""The time after which the nodes are looked at again."""
_CONNECT_SECONDS = 10.0
_PATIENCE_SECONDS = 60.0
"""The time after which the user is told that Ray has started no member."""
_TRIES = 3
"""The number of actors that may end before no other one is started on a node, for each of its places."""


class _Place(NamedTuple):
    """The part of a node that an actor gets."""

    node: str
    device: str
    cpus: int
    sharers: int
    """The number of such places on the node."""


class RayMembers:
    """The members in the cluster that Ray knows; a new one on this machine where it knows none.

    Args:
        config: The settings of the run.
        tell: The receiver of a notice.

    Raises:
        ConfigError: If Ray is not installed, there is no cluster at the address, or none of its nodes can compute.
    """

    awaits_others = True  # where none can come any more, `links` says so

    def __init__(self, config: ExtractConfig, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._ray = _connect(config.address)
        self._config = config
        self._actors: dict[Any, tuple[_Place, Any]] = {}
        """The actors that run, which end where nobody has them, and their places, by the results that are to come."""
        self._ended = Counter[str]()
        """The actors of each node that have ended."""
        self._last_end = "the end of their nodes"
        self._looked = 0.0
        self._began = math.inf
        """The time from which the first member is waited for; infinite before it, and once the user was told."""
        self._setup: Setup | None = None
        self._reception = Reception()
        self._newcomers = Newcomers(self._reception)
        try:
            self.device = self._choose_device()
        except BaseException:
            self.close()
            raise

    def start(self, job: Job, setup: Setup) -> None:
        """Starts an actor for each place; the members come by themselves."""
        self._setup = setup
        self._began = time.monotonic()
        self._recruit()

    def links(self) -> Mapping[str, MemberLink]:
        """Returns the connections to the members; starts actors on nodes that have come meanwhile.

        Raises:
            ConfigError, MemberError: If a member can't be started, or no node is left.
        """
        if self._setup is not None:
            if time.monotonic() - self._looked > _LOOK_SECONDS:
                self._recruit()
            self._newcomers.greet(self._setup)
            if not self._newcomers.links and time.monotonic() - self._began > _PATIENCE_SECONDS:
                self._began = math.inf
                self._tell("Ray has started no member yet; `ray status` shows whether others have the CPUs or GPUs")
        return self._newcomers.links

    def replace(self, name: str) -> str:
        """Takes leave of a member that is gone; where its node lives, another one starts there."""
        self.forget(name)
        return "is gone"

    def forget(self, name: str) -> None:
        """Takes leave of a member that has ended."""
        self._newcomers.forget(name)

    def close(self) -> None:
        """Ends the connections, upon which the members end, and then the actors."""
        self._newcomers.close()
        self._reception.close()
        self._ray.shutdown()

    def _choose_device(self) -> str:
        """Returns the device of all members; each sees no other GPU than its own."""
        wanted = self._config.device
        if wanted not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"--device {wanted}: --engine ray gives each member a GPU; give auto, cpu or cuda")
        for device in ("cuda", "cpu"):
            if wanted in ("auto", device) and self._places(device):
                return device
        what = "GPU" if wanted == "cuda" else "CPU"
        raise ConfigError(
            f"--engine ray: no node of the cluster has a {what} to give; add one, or look at `ray status`"
        )

    def _places(self, device: str) -> list[_Place]:
        """Returns the places that the cluster has now; a node that gives no CPUs, as many a head does, has none."""
        found = []
        for node in self._ray.nodes():
            cpus, gpus = (int(node["Resources"].get(name, 0)) for name in ("CPU", "GPU"))
            count = gpus if device == "cuda" else min(cpus, 1)
            if node["Alive"] and count:
                found += [_Place(node["NodeID"], device, cpus // count, count)] * count
        return found

    def _recruit(self) -> None:
        """Counts the actors that have ended, and starts those that are missing."""
        self._looked = time.monotonic()
        results = list(self._actors)
        for result in self._ray.wait(results, num_returns=len(results), timeout=0)[0] if results else ():
            self._ended[self._actors.pop(result)[0].node] += 1
            self._check(result)
        there = Counter(place for place, _ in self._actors.values())
        for place in self._places(self.device):
            there[place] -= 1
            if there[place] < 0 and self._ended[place.node] < _TRIES * place.sharers:
                self._start(place)
        if not self._actors and not self._newcomers.links:
            raise MemberError(
                f"the Ray cluster has no member any more, as {sum(self._ended.values())} have ended, the last by "
                f"{self._last_end}; the same command goes on from what is kept"
            )

    def _start(self, place: _Place) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options = {
            "num_cpus": min(place.cpus, 1) if place.device == "cuda" else place.cpus,
            "num_gpus": int(place.device == "cuda"),
            "max_restarts": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(place.node, soft=False),
        }
        actor = self._ray.remote(_actor_class()).options(**options).remote()
        threads, workers = (
            max(1, given // place.sharers) if given else given for given in (self._config.threads, self._config.workers)
        )
        cpus = max(1, place.cpus)
        known = self._reception.meeting
        meeting = known._replace(addresses=[self._ray.util.get_node_ip_address(), *known.addresses])._asdict()
        shares = (threads or cpus, cpus if workers is None else workers)
        result = actor.run.remote(meeting, os.getcwd(), place.device, *shares)
        self._actors[result] = (place, actor)

    def _check(self, result: Any) -> None:
        """Raises what an actor has raised; one that was killed, or its node, is no error."""
        try:
            self._ray.get(result)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, EmbedxError):
                raise error.cause from None
            if isinstance(error.cause, (ImportError, AttributeError, TypeError)):
                raise ConfigError(
                    f"a node of the Ray cluster can't start a member: {error.cause}; install the same embedx on all "
                    "nodes"
                ) from error
            self._last_end = f"{type(error.cause).__name__}: {error.cause}"
        except self._ray.exceptions.RayError as error:
            self._last_end = type(error).__name__


def _actor_class() -> type:
    """Returns a class that Ray sends whole, as it does those of functions: so a node without embedx can say that."""

    class Actor:
        def run(self, meeting: dict[str, Any], *rest: Any) -> None:
            from embedx.distribute.member_process import run_in_actor
            from embedx.distribute.rendezvous import Meeting

            run_in_actor(Meeting(**meeting), *rest)

    return Actor


def _connect(address: str | None) -> Any:
    """Returns Ray, connected to a cluster.

    Raises:
        ConfigError: If it is not installed, or not there.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"--engine ray needs packages that are missing ({error}); pip install 'embedx[ray]'"
        ) from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that starts here
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of a change to come
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if match := re.fullmatch(r"(.+):(\d+)", address or ""):  # Ray itself tries for minutes
            socket.create_connection((match[1], int(match[2])), _CONNECT_SECONDS).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (OSError, RuntimeError, ValueError, OverflowError, ImportError) as error:
        where = f"--address {address}" if address else "--engine ray"
        raise ConfigError(
            f"{where}: there is no Ray cluster that can be reached: {error}; `ray status` tells whether one runs"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray sets its own
    return ray
