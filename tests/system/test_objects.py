"""Objects in buckets, on servers with and without conditions, whose answers are lost and late."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

from embedx.system import objects, remote
from tests.s3_proxy import LOSE, Fault, S3Proxy, s3_proxy
from tests.servers import gcs_server

URL = "s3://bucket/a/b"
SHA256 = hashlib.sha256(b"one").hexdigest()


@pytest.fixture(scope="module")
def running() -> Iterator[S3Proxy]:
    with s3_proxy() as proxy:
        proxy.client.create_bucket(Bucket="bucket")
        yield proxy


@pytest.fixture
def proxy(running: S3Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    monkeypatch.setattr(remote, "_FIRST_DELAY", 0.01)
    for found in running.client.list_objects_v2(Bucket="bucket").get("Contents", []):
        running.client.delete_object(Bucket="bucket", Key=found["Key"])
    running.forget()
    yield running
    running.forget()


def body(proxy: S3Proxy, key: str = "a/b") -> Any:
    return proxy.client.get_object(Bucket="bucket", Key=key)["Body"].read()


def test_an_object_is_created_once_and_states_its_sha256(proxy: S3Proxy) -> None:
    assert objects.put_new(URL, b"one", SHA256)
    assert not objects.put_new(URL, b"two", "")
    assert body(proxy) == b"one"
    stated = objects.stat(URL)
    assert stated is not None and (stated.size, stated.sha256) == (3, SHA256)
    assert [request.status for request in proxy.named("PUT")] == [200, 412]


@pytest.mark.parametrize("fault", [LOSE, Fault(status=409), Fault(status=503), Fault(status=500)])
def test_an_object_whose_creation_is_tried_again_is_this_process_s_own(proxy: S3Proxy, fault: Fault) -> None:
    proxy.on(1, fault)
    assert objects.put_new(URL, b"one", SHA256) and body(proxy) == b"one"
    proxy.forget()
    proxy.on(1, fault)
    assert not objects.put_new(URL, b"two", "") and body(proxy) == b"one"


@pytest.mark.parametrize("fault", [None, LOSE, Fault(status=503)])
def test_an_object_takes_the_place_of_one_version_alone(proxy: S3Proxy, fault: Fault | None) -> None:
    objects.put(URL, b"one")
    first = objects.stat(URL)
    assert first is not None and first.version
    proxy.forget()
    if fault is not None:
        proxy.on(1, fault)
    assert objects.put(URL, b"two", replacing=first.version) and body(proxy) == b"two"
    assert not objects.put(URL, b"three", replacing=first.version) and body(proxy) == b"two"
    objects.remove(URL)
    assert not objects.put(URL, b"four", replacing=first.version) and objects.stat(URL) is None


def test_objects_are_listed_below_a_place_alone(proxy: S3Proxy) -> None:
    for key in ("a/b", "a/c/d", "a-b", "ab/c", "a/c/e"):
        objects.put(f"s3://bucket/{key}", key.encode())
    assert [(name, one.size) for name, one in objects.listed("s3://bucket/a")] == [("b", 3), ("c/d", 5), ("c/e", 5)]
    assert objects.names("s3://bucket/a") == ["b", "c"]
    assert list(objects.listed("s3://bucket/none")) == []
    assert objects.names("s3://bucket/none") == []
    objects.put("s3://bucket/a/f", b"")
    assert objects.names("s3://bucket/a") == ["b", "c", "f"]  # and not as it was listed before
    assert len(list(objects.listed("s3://bucket"))) == 6
    objects.put("s3://bucket/made", b"")
    proxy.client.put_object(Bucket="bucket", Key="made/", Body=b"")  # an empty folder, as consoles make it
    assert objects.names("s3://bucket/made") == []
    assert list(objects.listed("s3://bucket/made")) == []


def test_what_is_removed_is_gone_and_may_be_gone_already(proxy: S3Proxy) -> None:
    objects.put(URL, b"one")
    for _ in range(2):
        objects.remove(URL)
    assert objects.stat(URL) is None
    with pytest.raises(FileNotFoundError):
        objects.read(URL)


def test_a_range_is_one_request_for_these_bytes(proxy: S3Proxy) -> None:
    objects.put(URL, b"0123456789")
    proxy.forget()
    assert objects.read(URL, 3, 4) == b"3456"
    proxy.settle()
    assert [(request.method, request.bytes_down) for request in proxy.requests] == [("GET", 4)]


def test_the_same_on_google_s_storage() -> None:
    with gcs_server("bucket"):
        assert objects.put_new("gs://bucket/a/b", b"one", SHA256)
        stated = objects.stat("gs://bucket/a/b")
        assert stated is not None and (stated.size, stated.sha256) == (3, SHA256)
        assert [name for name, _ in objects.listed("gs://bucket/a")] == objects.names("gs://bucket/a") == ["b"]
        assert objects.put("gs://bucket/a/b", b"two", replacing=stated.version)
        assert not objects.put("gs://bucket/a/b", b"three", replacing=stated.version)
        assert objects.read("gs://bucket/a/b") == b"two"
        objects.remove("gs://bucket/a/b")
        assert objects.stat("gs://bucket/a/b") is None
