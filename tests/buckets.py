"""Stores in a bucket behind the proxy, looked at from outside: object by object, through no code of embedx's."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from embedx.names import CHECK_TIMES, MANIFEST
from embedx.store.reading.verify import verify
from tests.runs import EMBEDX, OFFLINE, assert_gone, descendants, digests, run
from tests.s3_proxy import LOSE, S3Proxy

BUCKET = "bucket"
PLACE = "stores/one"
URL = f"s3://{BUCKET}/{PLACE}"
_SAVED = "saved/"
HOLD_SECONDS = 3.0
"""In place of 60: the time after which a hold that its run no longer renews counts no more."""
_SHORT_HOLD = f"""
import embedx.store.writing.bucket_hold as hold
from embedx.__main__ import main
hold.HOLD_SECONDS = {HOLD_SECONDS}
hold._RENEWED_EVERY = {HOLD_SECONDS / 4}
main()
"""
EXTRACT = ["extract", "--backbone", "none", "--group-key", "class", "-b", "4", "--shard-size", "1056", "--workers", "0"]
"""Units of four rows of 64 numbers."""


def features(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """So many feature files of each of two classes, per split."""
    numbers = np.random.default_rng(seed)
    for split, count in counts.items():
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                np.save(root / split / name / f"{number:02}.npy", numbers.standard_normal(64, np.float32))
    return root


class Bucket:
    """A bucket behind the proxy, and what is in it.

    Args:
        proxy: The proxy before its server.
    """

    def __init__(self, proxy: S3Proxy) -> None:
        self.proxy = proxy

    def empty(self) -> None:
        self.proxy.forget()
        with contextlib.suppress(self.proxy.client.exceptions.ClientError):
            self.proxy.client.create_bucket(Bucket=BUCKET)
        for key in self.names(""):
            self.proxy.client.delete_object(Bucket=BUCKET, Key=key)

    def save(self) -> None:
        """Sets aside what is in the bucket."""
        for key in self.names(_SAVED):
            self.proxy.client.delete_object(Bucket=BUCKET, Key=key)
        for key in self.names(""):
            self.proxy.client.copy_object(Bucket=BUCKET, Key=_SAVED + key, CopySource={"Bucket": BUCKET, "Key": key})

    def restore(self) -> None:
        """Brings back what was set aside, with its metadata, and nothing else."""
        self.proxy.forget()
        for key in self.names(""):
            if not key.startswith(_SAVED):
                self.proxy.client.delete_object(Bucket=BUCKET, Key=key)
        for key in self.names(_SAVED):
            source = {"Bucket": BUCKET, "Key": key}
            self.proxy.client.copy_object(Bucket=BUCKET, Key=key.removeprefix(_SAVED), CopySource=source)

    def names(self, place: str = f"{PLACE}/") -> list[str]:
        pages = self.proxy.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=place)
        return [one["Key"] for page in pages for one in page.get("Contents", [])]

    def read(self, key: str) -> bytes:
        return self.proxy.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def upload(self, folder: Path, place: str) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                key = f"{place}/{path.relative_to(folder)}"
                self.proxy.client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())

    def digests(self, local: dict[str, str], place: str = PLACE) -> dict[str, str]:
        """The sha256 of each object but the manifest and the like, by its path in a local store where that fits."""
        found = {}
        for key in self.names(f"{place}/"):
            name = key.removeprefix(f"{place}/")
            if name == MANIFEST or name.endswith(CHECK_TIMES):
                continue
            path = next((path for path in local if f"/{name}".endswith(f"/{path}")), name)
            assert path not in found, (path, "in two generations")
            found[path] = hashlib.sha256(self.read(key)).hexdigest()
        return found

    def assert_is(self, local: dict[str, str], place: str = PLACE) -> None:
        """Checks that the store has the bytes of a local one, all its objects, and no other object."""
        found = self.digests(local, place)
        assert found == local, set(found.items()) ^ set(local.items())
        assert list(verify(f"s3://{BUCKET}/{place}")) == []


class Command:
    """One command on a store in a bucket, and what it gives on this machine."""

    def __init__(self, *arguments: str | Path) -> None:
        self.arguments = [str(argument) for argument in arguments]
        self.local: dict[str, str] = {}

    def run_locally(self, out: Path) -> dict[str, str]:
        done = run(*self.arguments, "--out", out)
        assert done.returncode == 0, done.stderr
        self.local = digests(out)
        return self.local

    def run(self, url: str = URL, **env: str) -> subprocess.CompletedProcess[str]:
        return run(*self.arguments, "--out", url, env=env)

    def start(self, url: str = URL, *, short_hold: bool = False) -> subprocess.Popen[str]:
        """Starts it in a process group of its own, perhaps with a hold that lasts for seconds only."""
        command = [sys.executable, "-c", _SHORT_HOLD] if short_hold else EMBEDX
        return subprocess.Popen(
            [*command, *self.arguments, "--out", url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | OFFLINE,
            start_new_session=True,
        )

    def complete(self, url: str = URL, code: int = 0) -> str:
        """Runs it to its end, though the hold of a run that was killed has to end first; returns what it says."""
        end = time.monotonic() + HOLD_SECONDS + 20
        while (done := self.run(url)).returncode == 75 and time.monotonic() < end:
            assert_plain(done.stderr)
            time.sleep(0.2)
        assert done.returncode == code, done.stderr
        assert_plain(done.stderr)
        return done.stderr


def strike(proxy: S3Proxy, command: Command, number: int, how: str) -> bool:
    """Kills all processes of a run at a request, by SIGKILL.

    Args:
        proxy: The proxy, whose rules are gone afterwards.
        command: The run's command.
        number: The number of the request.
        how: What becomes of it: it is `dropped`, is `late` and done when the run is dead, or its answer is `lost`.

    Returns:
        False if the run had come to its end before.
    """
    proxy.forget()
    proxy.hold_after(number if how == "lost" else number - 1)
    if how == "lost":
        proxy.on(number, LOSE)
    process = command.start()
    family: list[psutil.Process] = []
    struck = proxy.wait_held(process)
    with contextlib.suppress(psutil.NoSuchProcess):
        family = descendants(process)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode in (0, -signal.SIGKILL), (number, how, stderr)
    assert_gone(family, 10)
    proxy.release(forward=how == "late")
    proxy.settle()
    proxy.forget()
    assert_plain(stderr)
    return struck and process.returncode != 0


def spread(count: int, requests: int, chance: random.Random) -> list[tuple[int, str]]:
    """Places of kills, spread evenly over so many requests in a random order, and how each is done."""
    numbers = [1 + int((place + chance.random()) * requests / count) for place in range(count)]
    chance.shuffle(numbers)
    return [(number, chance.choice(["dropped", "late", "lost"])) for number in numbers]


def first_of_each(matches: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Matches the first request of each method and object, of those that match."""
    seen: set[tuple[str, str]] = set()

    def is_first(request: Any) -> bool:
        if not matches(request) or (request.method, request.path) in seen:
            return False
        seen.add((request.method, request.path))
        return True

    return is_first


def assert_plain(stderr: str) -> None:
    """Checks that nothing is shown that is no message, and no key."""
    assert "Traceback" not in stderr and "secret" not in stderr, stderr


def refusal(stderr: str) -> str:
    """The one line of a run that could not begin, but for the lines that tell of every run."""
    assert_plain(stderr)
    lines = [line for line in stderr.splitlines() if not line.endswith(": begins") and ": ends with exit" not in line]
    assert len(lines) == 1, stderr
    return lines[0]
