"""Objects of S3 are read by obstore as s3fs reads them, and by s3fs where obstore can't."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import fsspec.config
import pytest

from embedx.system import file_systems, remote, s3_reads
from tests.servers import no_access, s3_server

KEYS = ["a b+%25é.jpg", "dir/ü?#.jpg", " lead", "trail/", "trail", "x//y.jpg", "/slash", "slash", "e/../f", "a\\b", "."]
KEYS += ["~x*'()", "empty"]


def body(bucket: str, key: str) -> bytes:
    return b"" if key == "empty" else f"{bucket} {key}".encode()


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """A client; the buckets `lake` and `dotted.name` have objects that hold their own keys."""
    with s3_server() as client:
        for bucket in ("lake", "dotted.name"):
            client.create_bucket(Bucket=bucket)
            for key in KEYS:
                client.put_object(Bucket=bucket, Key=key, Body=body(bucket, key), ACL="public-read")
        yield client


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(remote, "_FIRST_DELAY", 0.01)
    file_systems.forget()
    yield
    file_systems.forget()


class Asked:
    """Counts what s3fs is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[str] = []
        fs, _ = file_systems.file_system("s3://lake/x")
        plain = fs.cat_file

        def cat_file(path: str, **more: Any) -> bytes:
            self.paths.append(path)
            return bytes(plain(path, **more))

        monkeypatch.setattr(fs, "cat_file", cat_file)


@pytest.mark.parametrize("bucket", ["lake", "dotted.name"])
def test_each_key_is_its_own_object(client: Any, monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    asked = Asked(monkeypatch)
    for key in KEYS:
        url = f"s3://{bucket}/{key}"
        if key in ("trail/",):  # fsspec's own rule: a path has no slash at its end
            continue
        assert remote.read(url) == body(bucket, key), key
    assert asked.paths == [f"{bucket}/{key}" for key in ("x//y.jpg", "/slash", "e/../f", ".")]


def test_parts_are_what_s3fs_gives(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    assert remote.read("s3://lake/slash", 1, 3) == b"ake" and remote.read("s3://lake/slash", 6, 99) == b"lash"
    assert asked.paths == []
    with pytest.raises(OSError, match=r"416|range"):
        remote.read("s3://lake/slash", 100, 3)
    assert asked.paths == ["lake/slash"]


def test_a_content_encoding_changes_no_byte(client: Any) -> None:
    client.put_object(Bucket="lake", Key="z", Body=b"\x1f\x8bnot really", ContentEncoding="gzip")
    assert remote.read("s3://lake/z") == b"\x1f\x8bnot really"


def test_errors_are_those_of_s3fs(client: Any) -> None:
    with pytest.raises(FileNotFoundError, match="not found"):
        remote.read("s3://lake/gone")
    with pytest.raises(FileNotFoundError, match="not found"):
        remote.read("s3://gone/x")
    with pytest.raises(OSError, match=r"more than the 2 B of --max-bytes"):
        remote.read("s3://lake/slash", most=2)
    with no_access(), pytest.raises(PermissionError, match=r"no access \("):
        remote.read("s3://lake/slash")


@pytest.mark.parametrize(
    ("settings", "by_s3fs"),
    [
        ({"key": "other", "secret": "s", "token": "t"}, False),
        ({"anon": True}, False),
        ({"client_kwargs": {"region_name": "eu-central-1"}}, False),
        ({"requester_pays": True}, True),
        ({"client_kwargs": {"verify": False}}, True),
    ],
)
def test_settings_of_fsspec_hold_or_s3fs_reads(
    client: Any, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], by_s3fs: bool
) -> None:
    monkeypatch.setitem(fsspec.config.conf, "s3", settings)
    asked = Asked(monkeypatch)
    assert remote.read("s3://lake/slash") == b"lake slash"
    assert bool(asked.paths) == by_s3fs


def test_an_endpoint_that_fsspec_is_given_comes_before_the_environment_s(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": client.meta.endpoint_url})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    asked = Asked(monkeypatch)
    assert remote.read("s3://lake/slash") == b"lake slash" and asked.paths == []


def test_without_credentials_the_advice_is_given(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(OSError, match="FSSPEC_S3"):
        remote.read("s3://lake/slash")


def test_obstore_is_not_asked_any_more_where_it_fails_and_s3fs_does_not(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(s3_reads._Bucket, "get", lambda self, key, part, most: asked.append(key))
    for _ in range(12):
        assert remote.read("s3://lake/slash") == b"lake slash"
    assert len(asked) == 8


@pytest.mark.soak
def test_the_region_of_a_bucket_is_asked_for(client: Any) -> None:
    client.create_bucket(Bucket="elsewhere", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    assert s3_reads.region_of(client, "elsewhere") == "eu-central-1"
    assert s3_reads.region_of(boto3.client("s3", endpoint_url="http://127.0.0.1:9"), "elsewhere") is None


def test_threads_share_one_file_system_and_its_connections(client: Any) -> None:
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(remote.read, ["s3://lake/x//y.jpg", "s3://lake/slash"] * 40))
        systems = set(map(id, threads.map(lambda _: file_systems.file_system("s3://lake/x")[0], range(40))))
    assert set(found) == {b"lake x//y.jpg", b"lake slash"} and len(systems) == 1


def test_a_listing_goes_on_over_the_end_of_a_page(client: Any) -> None:
    client.create_bucket(Bucket="many")
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: client.put_object(Bucket="many", Key=f"p/{n:04d}.jpg", Body=b"x"), range(1005)))
    client.put_object(Bucket="many", Key="p/folder/", Body=b"")
    found = list(remote.list_files("s3://many/p"))
    assert [file.path for file in found] == [f"{number:04d}.jpg" for number in range(1005)]
    assert found[-1][:3] == ("s3://many/p/1004.jpg", "1004.jpg", 1) and found[-1].mtime_ns
