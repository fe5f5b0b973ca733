"""Runs by members in a cluster of Ray, whose nodes are real processes on this machine."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from embedx.store.format.layout import index_files
from tests.distribute.members import UNITS, assert_finished, contents
from tests.runs import SEED, assert_gone, assert_visible_units_are_whole, run, start, wait_for_units

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:unclosed file .*/dev/null:ResourceWarning"),  # by Ray's older versions
]


@pytest.fixture(scope="module")
def head() -> Iterator[Cluster]:
    """A cluster of a head that gives no CPUs, as those of many do."""
    handler, environment = signal.getsignal(signal.SIGTERM), dict(os.environ)
    os.environ.update(
        RAY_worker_niceness="0"
    )  # else other processes, which are not nice, keep the nodes' from the cores
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    signal.signal(signal.SIGTERM, handler)  # Ray has set its own
    yield cluster
    cluster.shutdown()
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def cluster(head: Cluster) -> Iterator[Cluster]:
    """The cluster, whose other nodes are those of a test."""
    yield head
    for node in list(head.worker_nodes):
        head.remove_node(node)


def processes(name: str) -> list[psutil.Process]:
    """The processes of this name that the nodes, or a run, have started."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [child] if child.name() == name and child.status() != psutil.STATUS_ZOMBIE else []
    return found


@pytest.mark.soak
def test_nodes_that_come_and_die_leave_the_bytes_of_one_process(
    cluster: Cluster, tmp_path: Path, arguments: list[str], expected: dict[str, str]
) -> None:
    out = tmp_path / "store"
    dying, _ = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)
    process = start(*arguments, "--out", out, "--engine", "ray", "--address", cluster.address)
    writers: list[psutil.Process] = []
    while len(writers) < 2:  # until both nodes have computed rows
        writers = processes("embedx-writer")
        for writer in writers:
            writer.suspend()  # so that there is work left for the other node, and once one has died
    members = processes("embedx-member")
    cluster.remove_node(dying, allow_graceful=False)
    while all(member.is_running() for member in members):
        time.sleep(0.05)
    cluster.add_node(num_cpus=1)
    for writer in writers:
        with contextlib.suppress(psutil.NoSuchProcess):
            writer.resume()
    stderr = assert_finished(process, out, expected)
    assert "is gone; its units go to others" in stderr


ANOTHER_VERSION = """
import importlib.metadata as metadata
real = metadata.version
metadata.version = lambda name: "9.9" if name == "embedx" else real(name)
"""
NOT_INSTALLED = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "embedx":
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize(
    ("start_up", "message"),
    [
        pytest.param(
            ANOTHER_VERSION,
            f"runs embedx 9.9, and the driver {version('embedx')}; install one version on all machines",
            marks=pytest.mark.soak,
        ),
        pytest.param(
            NOT_INSTALLED,
            "can't start a member: No module named 'embedx'; install the same embedx on all nodes",
            marks=pytest.mark.soak,
        ),
    ],
    ids=["another", "none"],
)
def test_a_node_without_the_driver_s_embedx_is_told(
    start_up: str, message: str, cluster: Cluster, tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(start_up)
    cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(tmp_path)})
    done = run(*arguments, "--out", tmp_path / "store", "--engine", "ray", "--address", cluster.address)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.soak
def test_a_cluster_that_is_not_there_or_has_nothing_to_give_is_told(
    cluster: Cluster, tmp_path: Path, arguments: list[str]
) -> None:
    command = [*arguments, "--out", str(tmp_path / "store"), "--engine", "ray"]
    for options, message in (
        (
            ["--address", "127.0.0.1:1"],
            "--address 127.0.0.1:1: there is no Ray cluster that can be reached: [Errno 111] Connection refused",
        ),
        (["--address", cluster.address], "no node of the cluster has a CPU to give"),
        (["--address", cluster.address, "--device", "cuda"], "no node of the cluster has a GPU to give"),
        (["--address", cluster.address, "--device", "cuda:1"], "--device cuda:1: --engine ray gives each member a GPU"),
    ):
        done = run(*command, *options)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_nodes_members_and_drivers_that_are_killed_at_random_moments_leave_the_same_bytes(
    cluster: Cluster, tmp_path: Path, arguments: list[str], expected: dict[str, str]
) -> None:
    """Ten strikes; the store is begun by one process, and the last run of the command completes it."""
    chance = random.Random(f"{SEED}-ray")
    nodes = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
    command = [*arguments, "--engine", "ray", "--address", cluster.address]
    strikes = stores = 0
    while strikes < 10:
        stores += 1
        out = tmp_path / f"store-{stores}"
        begun = start(*arguments, "--out", out)
        wait_for_units(out, 3, begun)
        begun.kill()
        begun.communicate()
        while strikes < 10 and contents(out) != expected:
            missing = UNITS - len(index_files(out))
            wanted = len(index_files(out)) + chance.uniform(0, 0.6) * missing
            process = start(*command, "--out", out)
            while process.poll() is None and len(index_files(out)) < wanted:
                time.sleep(0.01)
            kind = chance.choice(["node", "node", "driver", "member", "stopped member"])
            members = processes("embedx-member")
            if kind == "node":
                cluster.remove_node(node := chance.choice(nodes), allow_graceful=False)
                nodes[nodes.index(node)] = cluster.add_node(num_cpus=1)
            elif kind == "driver":
                process.kill()
            elif members:
                member = chance.choice(members)
                member.kill() if kind == "member" else member.suspend()
            strikes += 1
            stderr = process.communicate(timeout=250)[1]
            assert "Traceback" not in stderr, stderr
            assert process.returncode in (0, -9), (kind, stderr)
            assert_gone(members, 15)
            if process.returncode != 0:
                assert_visible_units_are_whole(out)
        assert_finished(start(*command, "--out", out), out, expected)


@pytest.mark.soak
def test_without_a_cluster_one_is_started_and_ended(
    tmp_path: Path, arguments: list[str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tempfile.mkdtemp()  # with a short path, as it gets sockets
    monkeypatch.setenv("RAY_TMPDIR", folder)  # where Ray looks for a cluster that runs
    out = tmp_path / "store"
    process = start(*arguments, "--out", out, "--engine", "ray")
    wait_for_units(out, 3, process)
    assert_finished(process, out, expected)
    shutil.rmtree(folder)
