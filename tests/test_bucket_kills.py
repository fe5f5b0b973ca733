"""Runs on a bucket that are killed between any two requests: the same command then gives the same bytes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import embedx
from embedx.errors import EmbedxError
from embedx.store.reading.verify import NOT_COMPLETE, verify
from tests.buckets import EXTRACT, URL, Bucket, Command, features, spread, strike
from tests.runs import SEED
from tests.s3_proxy import s3_proxy

pytestmark = pytest.mark.timeout(900)

MEMBERS = {"one-process": [], "two-members": ["--devices", "cpu,cpu"]}


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with s3_proxy() as proxy:
        yield Bucket(proxy)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return features(tmp_path_factory.mktemp("features"), {"train": 6, "val": 3})


def undisturbed(bucket: Bucket, command: Command, local: Path) -> int:
    """Runs a command here and there; returns the number of its requests."""
    command.run_locally(local)
    bucket.proxy.forget()
    command.complete()
    return len(bucket.proxy.forget())


def assert_readable() -> None:
    """Whatever is there can be read, or is said not to be a store or not to be complete."""
    try:
        store = embedx.open(URL)
    except EmbedxError:
        return
    faults = [fault for fault in verify(URL) if "no index table names it" not in fault]
    assert faults == ([] if store.complete else [NOT_COMPLETE]), faults


def kill_and_complete(bucket: Bucket, command: Command, strikes: list[tuple[int, str]]) -> int:
    """Kills runs at requests, up to three on the way to one store; returns how many were."""
    killed = 0
    while strikes:
        bucket.restore()
        done = []
        for _ in range(min(3, len(strikes))):
            done.append(strikes.pop())
            if not strike(bucket.proxy, command, *done[-1]):
                break  # it had come to its end before
            killed += 1
            assert_readable()
        command.complete()
        assert bucket.digests(command.local) == command.local, done
        assert list(verify(URL)) == [], done
    print(f"{killed} kills")
    return killed


@pytest.mark.parametrize(
    ("members", "count"),
    [
        ("one-process", 30),
        ("two-members", 30),
    ],
)
@pytest.mark.soak
def test_a_run_that_is_killed_between_any_two_requests_is_finished_with_the_same_bytes(
    tmp_path: Path, bucket: Bucket, inputs: Path, members: str, count: int
) -> None:
    chance = random.Random(f"{SEED}-{members}-{count}")
    command = Command(*EXTRACT, *MEMBERS[members], "--data", inputs)
    bucket.empty()
    bucket.save()
    requests = undisturbed(bucket, command, tmp_path / "local")
    assert kill_and_complete(bucket, command, spread(count, requests, chance)) >= count / 2


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        pytest.param("--update", 2, marks=pytest.mark.soak),
        *(pytest.param(kind, 15, marks=pytest.mark.soak) for kind in ("--overwrite", "--update", "--retry-rejected")),
    ],
)
def test_a_killed_replacement_leaves_a_readable_store_and_is_finished_with_the_same_bytes(
    tmp_path: Path, bucket: Bucket, kind: str, count: int
) -> None:
    chance = random.Random(f"{SEED}-{kind}-{count}")
    inputs = features(tmp_path / "old", {"train": 6, "val": 3})
    old = Command(*EXTRACT, "--max-errors", "9", "--data", inputs)
    bad = inputs / "val" / "ant" / "01.npy"
    np.save(bad, np.full(64, np.nan, np.float32))
    old.run_locally(tmp_path / "local")
    bucket.empty()
    old.complete()
    bucket.save()
    more = {"--update": ["--max-gone", "50%"], "--retry-rejected": ["--allow-nonfinite"]}.get(kind, [])
    command = Command(*old.arguments, kind, *more)
    if kind != "--retry-rejected":
        np.save(inputs / "train" / "ant" / "00.npy", np.zeros(64, np.float32))
        (inputs / "train" / "bee" / "00.npy").unlink()
    requests = undisturbed(bucket, command, tmp_path / "local")
    assert kill_and_complete(bucket, command, spread(count, requests, chance)) >= count / 2
