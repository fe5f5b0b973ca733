"""Power cuts at every step of a run, replayed from a trace of its system calls under a strict model of the disk.

What a cut leaves is built and looked at: committed units are whole, the manifest is the one before or after, and what
was declared complete is. For some the same command runs again. Runs that forget a sync are found.
"""

from __future__ import annotations

import copy
import hashlib
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from embedx.errors import StoreError
from embedx.store.format.index import read_entry, read_index
from embedx.store.format.layout import index_files
from embedx.store.format.manifest import Manifest
from embedx.store.reading.verify import verify
from tests.runs import SEED, digests
from tests.soak.power_cuts import Disk, Trace, lay_out, read_trace
from tests.soak.scenarios import SCENARIOS, Stage

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

CUTS = 8
"""At each step."""
RERUNS = 6
"""For each scenario."""
MUTANTS = {"files": "fsync", "folders": "fsync-folder", "file systems": "syncfs"}
"""What a run forgets to sync."""


def traced(stage: Stage, log: Path) -> Trace:
    """Runs the scenario, and returns what it has done to the store and beside it."""
    stage.reset()
    disk = Disk(stage.stores)
    done = stage.run(environment={"SOAK_TRACE": str(log)})
    assert done.code == 0 and stage.faults() == [], done.stderr
    return Trace(disk, list(read_trace(log, stage.stores)))


def faults_of(store: Path, manifests: set[bytes]) -> Iterator[str]:
    """What is not whole in a store that a cut has left."""
    manifest = store / "manifest.json"
    if not manifest.exists():
        return
    if manifest.read_bytes() not in manifests:
        yield "the manifest is neither the one before nor the one after"
        return
    for path in index_files(store).values():
        try:
            read_index(path)
            shards = read_entry(path).shards
        except StoreError as error:
            yield f"an index table is damaged: {error}"
            continue
        for shard in shards:
            place = store / shard.path
            if not place.exists() or hashlib.sha256(place.read_bytes()).hexdigest() != shard.sha256:
                yield f"{path.name} commits {shard.path}, which is {'damaged' if place.exists() else 'missing'}"
    if Manifest.read(store).complete:
        yield from verify(store)


def cuts(trace: Trace, seed: str) -> Iterator[tuple[int, dict[str, bytes | None], set[bytes]]]:
    """Yields some cuts at each step: its number, what is left, and all manifests so far."""
    disk, chance = copy.deepcopy(trace.disk), random.Random(seed)
    manifests = set(disk.contents("manifest.json"))
    for step, record in enumerate(trace.records):
        disk.apply(record)
        if record.op in ("rename", "exchange"):
            manifests.update(disk.contents("manifest.json"))
        for _ in range(CUTS):
            yield step, disk.cut(chance), manifests


def faults_after_cuts(trace: Trace, seed: str, folder: Path, out: str, *, replaces: bool) -> tuple[int, list[str]]:
    """Returns the number of cuts, and what is not whole after which."""
    faults: list[str] = []
    known: dict[tuple[int, frozenset[tuple[str, bytes | None]]], list[str]] = {}
    count = 0
    for step, tree, manifests in cuts(trace, seed):
        count += 1
        found = []
        for name in {path.partition("/")[0] for path in tree}:
            store = {path: data for path, data in tree.items() if path.partition("/")[0] == name}
            key = len(manifests), frozenset(store.items())
            if key not in known:
                lay_out(store, folder)
                known[key] = list(faults_of(folder / name, manifests))
                shutil.rmtree(folder)
            found += known[key]
        if replaces and f"{out}/manifest.json" not in tree:
            found.append("there is no store any more")
        faults += [f"step {step} ({trace.records[step]._replace(data=b'')}): {text}" for text in found]
    return count, faults


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_power_cut_at_any_moment_leaves_whole_units_and_a_whole_manifest(
    tmp_path: Path, stage: Stage, scenario: str, record_property: Callable[[str, object], None]
) -> None:
    trace = traced(stage, tmp_path / "trace")
    seed, replaces = f"{SEED}-{scenario}", bool(SCENARIOS[scenario].update)
    count, faults = faults_after_cuts(trace, seed, tmp_path / "cut", stage.out.name, replaces=replaces)
    record_property("cuts", count)
    print(f"{scenario}, seed {seed}: {len(trace.records)} steps, {count} cuts")
    assert not faults, f"{len(faults)} faults\n" + "\n".join(faults[:20])
    disk = copy.deepcopy(trace.disk)
    for record in trace.records:
        disk.apply(record)
    shutil.rmtree(stage.stores)
    lay_out(disk.durable(), stage.stores)
    assert digests(stage.out) == stage.expected and list(verify(stage.out)) == []  # a cut after the end costs nothing
    assert stage.run().code == 0 and stage.faults() == []  # and what it brought back beside the store goes
    for name, op in MUTANTS.items():
        mutant = trace.without(op)
        _, faults = faults_after_cuts(mutant, seed, tmp_path / "cut", stage.out.name, replaces=replaces)
        assert faults or mutant == trace, f"a run that syncs no {name} is not found"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_after_a_power_cut_the_same_command_gives_the_same_bytes(tmp_path: Path, stage: Stage, scenario: str) -> None:
    trace = traced(stage, tmp_path / "trace")
    chance = random.Random(f"{SEED}-{scenario}-reruns")
    left = [tree for _, tree, _ in cuts(trace, f"{SEED}-{scenario}-rerun")]
    for tree in chance.sample(left, RERUNS):
        stage.reset()
        shutil.rmtree(stage.stores)
        lay_out(tree, stage.stores)
        done = stage.run()
        assert done.code == 0 and stage.faults() == [], (sorted(tree), done.stderr)
