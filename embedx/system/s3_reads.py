"""Reads objects of S3 by obstore, at a tenth of the CPU time that s3fs takes; imported only where there is such a URL.

s3fs stays the judge: what obstore can't do, may not do by the settings, or fails at, s3fs does again, and its answer or
error counts. So settings, credentials and the words of errors are those of s3fs, and no text of obstore's is read.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Credential

_SETTINGS = frozenset({"key", "secret", "token", "anon", "profile", "endpoint_url", "client_kwargs"})
"""The options of s3fs that are carried over."""
_CLIENT_SETTINGS = frozenset({"endpoint_url", "region_name"})
_OURS = frozenset({"max_concurrency", "config_kwargs"})
"""The options that `remote` itself gives to s3fs."""
_ODD_KEY = re.compile(r"^$|^/|/$|//|(^|/)\.{1,2}(/|$)|\?versionId=")
"""The keys that obstore takes for others, as it brings them into the form of paths, or that name a version."""
_AWS = re.compile(r"\.amazonaws\.com(\.\w+)?$")
_SILENCE = timedelta(seconds=30)
"""The longest time without a byte of an answer."""
_CREDENTIALS_LAST = timedelta(minutes=5)
"""The time after which botocore is asked for credentials again, which renews those that expire."""
_MOST_VAIN = 8
"""The number of reads in a row that s3fs alone does, after which obstore is not asked any more."""

Range = tuple[int, int]


class _Bucket:
    """A bucket as obstore reads it, by the settings of an s3fs file system; safe for threads."""

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        self._store: Any = _open(name, options) if _can_carry(options) else None
        self.vain = 0
        """The number of reads in a row that s3fs alone could do."""

    def takes(self, key: str) -> bool:
        """Tells whether obstore is to be asked for a key."""
        return self._store is not None and self.vain < _MOST_VAIN and not _ODD_KEY.search(key)

    def get(self, key: str, part: Range | None, most: int) -> bytes | None:
        """Returns an object's bytes, or a part of them; None if s3fs is to be asked."""
        import obstore
        from obstore.exceptions import BaseError

        try:
            answer = obstore.get(self._store, key, options={"range": part} if part else None)
            data = bytes(answer.bytes()) if part or answer.meta["size"] <= most else None
        except (BaseError, OSError, ValueError):
            return None
        self.vain = 0
        return data


class S3Reads:
    """The buckets that a process reads by obstore; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buckets: dict[tuple[str, Any], _Bucket] = {}

    def get(self, fs: Any, path: str, part: Range | None, most: int, otherwise: Callable[[], bytes]) -> bytes:
        """Returns an object's bytes, or a part of them, or else what `otherwise`, which asks s3fs, returns.

        Args:
            fs: The s3fs file system, whose options say how the bucket is reached.
            path: The bucket and the key, with a slash between them.
            part: The first byte and the one behind the last; None reads all.
            most: The largest number of bytes of a whole object; of a larger one s3fs shall speak.
            otherwise: The same read by s3fs.
        """
        if not _is_process_of_obstore():
            return otherwise()
        name, _, key = path.partition("/")
        bucket = self._bucket(name, fs)
        if not bucket.takes(key):
            return otherwise()
        if (data := bucket.get(key, part, most)) is None:
            data = otherwise()
            bucket.vain += 1
        return data

    def _bucket(self, name: str, fs: Any) -> _Bucket:
        with self._lock:
            if (name, fs) not in self._buckets:
                self._buckets[name, fs] = _Bucket(name, fs.storage_options)
            return self._buckets[name, fs]


_process_of_obstore: list[int] = []
"""The number of the process that has begun to use obstore, also in those that it forks."""


def _is_process_of_obstore() -> bool:
    """Tells whether obstore may be asked: its threads don't survive a fork, and a child would wait for them for ever.

    Such a child is a worker of torch's DataLoader, where its parent has read a store from a bucket.
    """
    if not _process_of_obstore:
        _process_of_obstore.append(os.getpid())
    return _process_of_obstore[0] == os.getpid()


class _Reached(NamedTuple):
    """The way in which botocore reaches a bucket."""

    endpoint: str
    """The scheme and the host, which has the bucket's name if it is no part of the path."""
    is_virtual: bool
    region: str | None


def _can_carry(options: Mapping[str, Any]) -> bool:
    """Tells whether these options of s3fs mean nothing that obstore is not told."""
    try:
        import obstore  # noqa: F401
    except ImportError:
        return False
    client = options.get("client_kwargs") or {}
    return options.keys() <= _SETTINGS | _OURS and client.keys() <= _CLIENT_SETTINGS


def _open(name: str, options: Mapping[str, Any]) -> Any:
    """Returns obstore's store of a bucket; None if botocore reaches it in a way that obstore can't follow."""
    import botocore.session
    from botocore.exceptions import BotoCoreError, ClientError
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    session = botocore.session.Session(profile=options.get("profile"))
    if options.get("key") and options.get("secret"):
        session.set_credentials(options["key"], options["secret"], options.get("token"))
    try:
        reached = _reached(session, name, options)
        credentials = None if options.get("anon") else session.get_credentials()
        if reached is None or (credentials is None and not options.get("anon")):
            return None
        client: ClientConfig = {"allow_http": True, "timeout": timedelta(days=1), "read_timeout": _SILENCE}
        if bundle := session.get_config_variable("ca_bundle"):
            client["root_certificate"] = Path(bundle).read_bytes()  # beside the system's own
        return S3Store(
            name,
            config={
                "endpoint": reached.endpoint,
                "aws_endpoint_url_s3": reached.endpoint,  # which it would take from the environment
                "region": reached.region or "us-east-1",
                "virtual_hosted_style_request": reached.is_virtual,
                "skip_signature": credentials is None,
            },
            client_options=client,
            retry_config={"max_retries": 0},
            credential_provider=None if credentials is None else partial(_current, credentials),
        )
    except (BotoCoreError, ClientError, BaseError, ValueError, OSError):
        return None


def _current(credentials: Any) -> S3Credential:
    """Returns botocore's credentials, which it renews where they expire, as obstore takes them."""
    frozen = credentials.get_frozen_credentials()
    return {
        "access_key_id": frozen.access_key,
        "secret_access_key": frozen.secret_key,
        "token": frozen.token,
        "expires_at": datetime.now(UTC) + _CREDENTIALS_LAST,
    }


def _reached(session: Any, name: str, options: Mapping[str, Any]) -> _Reached | None:
    """Asks botocore where a bucket is, as it signs a URL of it."""
    from botocore import UNSIGNED
    from botocore.config import Config

    client_kwargs = options.get("client_kwargs") or {}
    config = Config(retries={"total_max_attempts": 1}, connect_timeout=10, read_timeout=10)
    if options.get("anon"):
        config = config.merge(Config(signature_version=UNSIGNED))
    client = session.create_client(
        "s3",
        endpoint_url=options.get("endpoint_url") or client_kwargs.get("endpoint_url"),
        region_name=client_kwargs.get("region_name"),
        config=config,
    )
    url = urlsplit(client.generate_presigned_url("get_object", Params={"Bucket": name, "Key": "key"}))
    is_virtual = url.path == "/key"
    if not is_virtual and url.path != f"/{name}/key":
        return None
    region = region_of(client, name) if _AWS.search(url.hostname or "") else None
    return _Reached(f"{url.scheme}://{url.netloc}", is_virtual, region or client.meta.region_name)


def region_of(client: Any, name: str) -> str | None:
    """Returns the region that AWS states of a bucket, as a request signed for another one is refused."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer = client.head_bucket(Bucket=name)
    except ClientError as error:  # such as for want of access, which states the region, too
        answer = error.response
    except BotoCoreError:
        return None
    region: str | None = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region")
    return region
