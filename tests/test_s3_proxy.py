"""The proxy before the server of S3, asked by boto3 and by s3fs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import boto3
import botocore.config
import pytest
import s3fs
from botocore.exceptions import ClientError, ConnectionClosedError, ResponseStreamingError

from tests.s3_proxy import CONDITIONS, LOSE, RESET, Fault, Request, S3Proxy, s3_proxy

ONCE = botocore.config.Config(retries={"total_max_attempts": 1})


@pytest.fixture(scope="module")
def running() -> Iterator[S3Proxy]:
    with s3_proxy() as proxy:
        proxy.client.create_bucket(Bucket="bucket")
        yield proxy


@pytest.fixture
def proxy(running: S3Proxy) -> Iterator[S3Proxy]:
    running.forget()
    yield running
    running.forget()


@pytest.fixture(scope="module")
def client(running: S3Proxy) -> Iterator[Any]:
    client = boto3.client("s3", config=ONCE)
    yield client
    client.close()


def put(client: Any, key: str, body: bytes = b"body", **more: Any) -> int:
    """The status of a PUT, by the client that asks once."""
    try:
        answer = client.put_object(Bucket="bucket", Key=key, Body=body, **more)
    except ClientError as error:
        answer = error.response
    return answer["ResponseMetadata"]["HTTPStatusCode"]


def keys(proxy: S3Proxy) -> list[str]:
    return [one["Key"] for one in proxy.client.list_objects_v2(Bucket="bucket").get("Contents", [])]


def test_requests_are_forwarded_and_recorded_in_order(proxy: S3Proxy, client: Any) -> None:
    assert put(client, "a/b c", b"0123456789") == 200
    answer = client.get_object(Bucket="bucket", Key="a/b c", Range="bytes=2-4")
    assert answer["Body"].read() == b"234"
    assert client.head_object(Bucket="bucket", Key="a/b c")["ContentLength"] == 10
    client.list_objects_v2(Bucket="bucket", Prefix="a/")
    fs = s3fs.S3FileSystem()
    fs.pipe_file("bucket/large", bytes(6 << 20), chunksize=5 << 20)  # in parts
    assert fs.cat_file("bucket/large") == bytes(6 << 20)
    fs.rm_file("bucket/large")
    text = [str(request) for request in proxy.requests]
    assert text[:4] == [
        "1 PUT /bucket/a/b%20c 200",
        "2 GET /bucket/a/b%20c bytes=2-4 206",
        "3 HEAD /bucket/a/b%20c 200",
        "4 GET /bucket list-type=2&prefix=a/&encoding-type=url 200",
    ]
    assert [(one.key, one.bytes_up, one.bytes_down) for one in proxy.requests[:2]] == [
        ("a/b c", 10, 0),
        ("a/b c", 0, 3),
    ]
    assert proxy.named("DELETE", "large")[0].forwarded
    assert proxy.forget()[0].key == "a/b c" and proxy.requests == []


def test_conditions_are_kept_or_ignored(proxy: S3Proxy, client: Any) -> None:
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(put(client, "once", IfNoneMatch="*"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] + [412] * 7
    mark = client.head_object(Bucket="bucket", Key="once")["ETag"]
    assert put(client, "once", b"new", IfMatch=mark) == 200
    assert put(client, "once", b"newer", IfMatch=mark) == 412
    proxy.ignored = CONDITIONS
    assert put(client, "once", IfNoneMatch="*") == put(client, "once", IfMatch=mark) == 200


def test_answers_of_errors_are_the_proxys_own(proxy: S3Proxy, client: Any) -> None:
    for status in (403, 409, 412, 500, 503):
        proxy.on(lambda request: request.key == "refused", Fault(status=status), times=1)
    assert [put(client, "refused") for _ in range(5)] == [403, 409, 412, 500, 503]
    assert "refused" not in keys(proxy)
    assert put(client, "refused") == 200
    proxy.on(lambda request: request.number % 3 == 0, Fault(status=503))
    assert [put(client, "storm") for _ in range(6)].count(503) == 2


def test_a_reset_request_is_not_done_and_one_whose_answer_is_lost_is(proxy: S3Proxy, client: Any) -> None:
    proxy.on(1, RESET)
    proxy.on(2, LOSE)
    proxy.on(4, Fault(cut=1000))
    for key in ("reset", "lost"):
        with pytest.raises(ConnectionClosedError):
            put(client, key)
    found = keys(proxy)
    assert "reset" not in found and "lost" in found
    assert [one.forwarded for one in proxy.requests] == [False, True]
    assert put(client, "cut", bytes(5000)) == 200
    with pytest.raises(ResponseStreamingError):
        client.get_object(Bucket="bucket", Key="cut")["Body"].read()
    assert proxy.requests[3].bytes_down == 1000


def test_requests_wait_and_bodies_are_slow(proxy: S3Proxy, client: Any) -> None:
    proxy.latency = 0.2
    began = time.monotonic()
    put(client, "late")
    assert time.monotonic() - began >= 0.2
    proxy.forget()
    proxy.bytes_per_second = 1e6
    began = time.monotonic()
    put(client, "slow", bytes(200_000))
    assert time.monotonic() - began >= 0.2
    client.get_object(Bucket="bucket", Key="slow")["Body"].read()
    assert time.monotonic() - began >= 0.4


def test_requests_after_one_are_held_until_they_are_let_through_or_dropped(proxy: S3Proxy, client: Any) -> None:
    def send(key: str) -> None:
        try:
            put(client, key)
        except ConnectionClosedError:
            dropped.append(key)

    dropped: list[str] = []
    for forward in (True, False):
        proxy.forget()
        proxy.hold_after(1)
        send("first")
        threads = [threading.Thread(target=send, args=(f"{forward}-{number}",)) for number in range(2)]
        for thread in threads:
            thread.start()
        assert proxy.wait_held()
        assert f"{forward}-0" not in keys(proxy)
        while len(proxy.requests) < 3:
            time.sleep(0.01)
        proxy.release(forward=forward)
        for thread in threads:
            thread.join()
    assert {"True-0", "True-1"} <= set(keys(proxy)) and sorted(dropped) == ["False-0", "False-1"]


def test_a_function_is_called_before_and_after_the_server_does_it(proxy: S3Proxy, client: Any) -> None:
    there: list[bool] = []

    def look(request: Request) -> None:
        there.append(request.key in keys(proxy))

    proxy.on(2, Fault(before=look, after=look))
    for key in ("one", "two"):
        put(client, key)
    assert there == [False, True]


def test_the_servers_clock_can_be_wrong(proxy: S3Proxy, client: Any) -> None:
    put(client, "time")
    true = client.head_object(Bucket="bucket", Key="time")["LastModified"]
    proxy.skew = -600
    stated = [client.head_object(Bucket="bucket", Key="time")["LastModified"]]
    stated += [one["LastModified"] for one in client.list_objects_v2(Bucket="bucket", Prefix="time")["Contents"]]
    assert all(599 <= (true - time).total_seconds() <= 601 for time in stated)
