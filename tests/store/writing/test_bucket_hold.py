"""The hold of a store in a bucket, and the question to its server."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from embedx.errors import ConfigError, StoreError, StoreLockedError
from embedx.names import LOCK, PROBE
from embedx.paths import BucketPath
from embedx.store.format.object_folder import ObjectFolder
from embedx.store.writing import bucket_hold
from embedx.store.writing.bucket_hold import BucketHold, check_bucket
from embedx.system import remote
from tests.s3_proxy import Fault, S3Proxy, s3_proxy
from tests.servers import no_access

PLACE = BucketPath("s3://bucket/store")


@pytest.fixture(scope="module")
def running() -> Iterator[S3Proxy]:
    with s3_proxy() as proxy:
        proxy.client.create_bucket(Bucket="bucket")
        yield proxy


@pytest.fixture
def proxy(running: S3Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    monkeypatch.setattr(remote, "_FIRST_DELAY", 0.01)
    bucket_hold._check_conditions.cache_clear()
    for found in running.client.list_objects_v2(Bucket="bucket").get("Contents", []):
        running.client.delete_object(Bucket="bucket", Key=found["Key"])
    running.forget()
    yield running
    running.forget()


@pytest.fixture
def root() -> ObjectFolder:
    return ObjectFolder(PLACE)


def names(proxy: S3Proxy) -> list[str]:
    return [found["Key"] for found in proxy.client.list_objects_v2(Bucket="bucket").get("Contents", [])]


def leave(proxy: S3Proxy, **changes: Any) -> None:
    """Leaves a hold, which some facts of are others."""
    hold = BucketHold(ObjectFolder(PLACE))
    facts = json.loads(proxy.client.get_object(Bucket="bucket", Key=f"store/{LOCK}")["Body"].read())
    hold.release()
    proxy.client.put_object(Bucket="bucket", Key=f"store/{LOCK}", Body=json.dumps(facts | changes).encode())


def test_a_store_is_held_by_one_run_that_is_named(proxy: S3Proxy, root: ObjectFolder) -> None:
    hold = BucketHold(root)
    with pytest.raises(StoreLockedError, match=r"s3://bucket/store is held by another run \(process \d+ on .*60 secon"):
        BucketHold(ObjectFolder(PLACE))
    hold.check()
    hold.release()
    assert names(proxy) == []
    BucketHold(root).release()


def test_a_hold_whose_process_of_this_machine_was_killed_is_taken_over_at_once(
    proxy: S3Proxy, root: ObjectFolder
) -> None:
    program = f"""
import os
from embedx.store.format.object_folder import ObjectFolder
from embedx.store.writing.bucket_hold import BucketHold
BucketHold(ObjectFolder({PLACE!r}))
os._exit(9)
"""
    head = "from embedx.paths import BucketPath"
    assert subprocess.run([sys.executable, "-c", head + program]).returncode == 9
    assert names(proxy) == [f"store/{LOCK}"]
    BucketHold(root).release()
    assert names(proxy) == []


@pytest.mark.parametrize(("seconds", "is_left"), [(60.0, False), (0.5, True), ("odd", False)])
def test_a_hold_of_another_machine_is_taken_over_after_its_time(
    proxy: S3Proxy, root: ObjectFolder, seconds: object, is_left: bool
) -> None:
    leave(proxy, process=["another", "pid:[1]", 1, "2"], seconds=seconds)
    time.sleep(2)  # as times are whole seconds
    if is_left:
        BucketHold(root).release()
        assert names(proxy) == []
    else:
        with pytest.raises(StoreLockedError):
            BucketHold(root)
        assert names(proxy) == [f"store/{LOCK}"]


@pytest.mark.parametrize(
    "data", [b"", b"[1]", b'{"process": 1}', b'{"process": []}', b'{"process": ["x", 1]}', b'{"seconds": null}']
)
def test_a_damaged_hold_is_a_hold(proxy: S3Proxy, root: ObjectFolder, data: bytes) -> None:
    proxy.client.put_object(Bucket="bucket", Key=f"store/{LOCK}", Body=data)
    with pytest.raises(StoreLockedError, match="is held by another run"):
        BucketHold(root)


def test_a_run_whose_hold_was_taken_over_says_so_and_leaves_it(
    proxy: S3Proxy, root: ObjectFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_hold, "_RENEWED_EVERY", 0.05)
    hold = BucketHold(root)
    proxy.client.put_object(Bucket="bucket", Key=f"store/{LOCK}", Body=b"{}")
    wait_until(lambda: not hold._thread.is_alive())
    with pytest.raises(StoreError, match="another run has taken s3://bucket/store over meanwhile"):
        hold.check()
    hold.release()
    assert names(proxy) == [f"store/{LOCK}"]


def test_a_hold_is_renewed(proxy: S3Proxy, root: ObjectFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_hold, "_RENEWED_EVERY", 0.05)
    hold = BucketHold(root)
    proxy.on(lambda request: request.number % 3 == 0, Fault(status=503))
    wait_until(lambda: len([one for one in proxy.named("PUT", LOCK) if one.status == 200]) > 4)
    hold.check()
    hold.release()
    assert names(proxy) == []


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_server_with_conditions_is_asked_once(proxy: S3Proxy) -> None:
    for _ in range(2):
        check_bucket(PLACE)
    assert [request.status for request in proxy.named("PUT")] == [200, 412, 412]
    assert names(proxy) == []


def test_what_another_run_asks_at_the_same_time_does_no_harm(proxy: S3Proxy) -> None:
    key = f"store/{PROBE}"
    remove = Fault(before=lambda request: proxy.client.delete_object(Bucket="bucket", Key=key))
    proxy.on(lambda request: len(proxy.named("PUT")) == 2, remove, times=1)
    check_bucket(PLACE)
    assert [request.status for request in proxy.named("PUT")] == [200, 200, 412, 412]


def test_a_server_without_conditions_is_refused(proxy: S3Proxy) -> None:
    for header in ("if-none-match", "if-match"):
        proxy.ignored = (header,)
        with pytest.raises(ConfigError, match=rf"s3://bucket/store: its server ignores the condition `(?i:{header})"):
            check_bucket(PLACE)
        assert names(proxy) == []


def test_a_bucket_to_which_nothing_can_be_written_is_refused(proxy: S3Proxy) -> None:
    with pytest.raises(ConfigError, match=r"--out s3://none/store: there is no such bucket; make it, or"):
        check_bucket(BucketPath("s3://none/store"))
    with no_access(), pytest.raises(ConfigError, match=r"--out s3://bucket/store: no access \("):
        check_bucket(PLACE)
    bucket_hold._check_conditions.cache_clear()
    proxy.on(lambda request: request.method == "PUT", Fault(status=403))
    with pytest.raises(ConfigError, match=r"--out s3://bucket/store: no access \(.*\); a run writes, reads"):
        check_bucket(PLACE)
    with pytest.raises((ConfigError, StoreError), match=r"https://example\.invalid/store: can't be written"):
        check_bucket(BucketPath("https://example.invalid/store"))
    with pytest.raises(ConfigError, match="nonesuch://bucket/store: unknown scheme 'nonesuch'"):
        check_bucket(BucketPath("nonesuch://bucket/store"))


def test_a_renewal_whose_version_could_not_be_asked_for_is_no_loss(proxy: S3Proxy, root: ObjectFolder) -> None:
    hold = BucketHold(root)
    proxy.on(lambda request: request.method == "HEAD", Fault(status=403), times=1)
    for _ in range(3):
        hold._renew()
    hold.check()
    hold.release()
    assert names(proxy) == []


def test_a_hold_that_the_run_before_has_removed_in_its_end_is_made_again(proxy: S3Proxy, root: ObjectFolder) -> None:
    hold = BucketHold(root)
    proxy.client.delete_object(Bucket="bucket", Key=f"store/{LOCK}")
    hold._renew()
    hold.check()
    assert names(proxy) == [f"store/{LOCK}"]
    hold.release()


def test_a_run_that_was_stopped_for_long_asks_before_it_goes_on(proxy: S3Proxy, root: ObjectFolder) -> None:
    hold = BucketHold(root)
    hold._renewed -= 100
    proxy.client.delete_object(Bucket="bucket", Key=f"store/{LOCK}")  # by another run, which has ended
    with pytest.raises(StoreError, match="another run has taken s3://bucket/store over meanwhile"):
        hold.check()
    hold.release()


@pytest.mark.parametrize("place", ["memory://bucket/store", "ftp://host/store", "hf://datasets/one/store"])
def test_a_client_that_looks_first_and_then_writes_is_refused(place: str) -> None:
    """As it would create nothing twice, and so stand the probe, though its server is asked for no condition."""
    with pytest.raises(ConfigError, match=f"--out {place}: the installed client of .* can't create an object only"):
        check_bucket(BucketPath(place))
