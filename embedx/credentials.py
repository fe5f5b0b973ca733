"""Credentials in URLs, and how texts are shown without them."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_LINKS = re.compile(r"::(?=[a-z][a-z0-9+.-]*://)", re.IGNORECASE)
"""The sign between the URLs of a chain, as fsspec has them."""
_URL_IN_TEXT = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"`<>]*", re.IGNORECASE)
_TOKEN = re.compile(r"\bhf_\w{16,}|\b(?<=bearer )[\w.+/=~-]{8,}|\b(?<=basic )[\w+/=]{8,}", re.IGNORECASE)
"""A token of the Hugging Face hub, and one in a header."""

_NO_USER = frozenset({"abfs", "abfss", "wasb", "wasbs", "github", "hf"})
"""Schemes in which a container, a repository or a revision stands before the `@`."""

_SIGNATURE_PREFIXES = (
    "x-amz-",  # AWS, version 4: docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
    "x-goog-",  # Google: cloud.google.com/storage/docs/authentication/canonical-requests
    "x-oss-",  # Alibaba: alibabacloud.com/help/en/oss/developer-reference/ddd-signatures-to-urls
    "q-",  # Tencent: cloud.tencent.com/document/product/436/7778
)
_SIGNATURE_NAMES = frozenset(
    # AWS, version 2: docs.aws.amazon.com/AmazonS3/latest/userguide/RESTAuthentication.html
    {"awsaccesskeyid", "signature"}
    # CloudFront: docs.aws.amazon.com/AmazonCloudFront/latest/DeveloperGuide/private-content-creating-signed-url.html
    | {"key-pair-id"}
    # Google's version 2, and Alibaba's, as above
    | {"googleaccessid", "ossaccesskeyid", "security-token"}
    # Azure: learn.microsoft.com/rest/api/storageservices/create-service-sas
    | {"sig"}
    # of no one service
    | {"access_key", "access_token", "accesskey", "accesstoken", "api-key", "api_key", "apikey", "auth", "auth_token"}
    | {
        "authkey",
        "authorization",
        "authtoken",
        "bearer",
        "client_secret",
        "credential",
        "credentials",
        "hdnea",
        "hdnts",
    }
    | {"hmac", "id_token", "jwt", "pass", "passwd", "password", "private_token", "pwd", "refresh_token", "secret"}
    | {"secret_key", "session_token", "sessionid", "sign", "token"}
)
"""The names, in small letters, of the parameters that prove an access."""
_TERMS_NAMES = frozenset(
    {"expires", "policy", "hash-algorithm"}  # of CloudFront, and of the second versions
    | {"sv", "ss", "srt", "sp", "se", "st", "spr", "sip", "sr", "si", "sdd", "ses", "scid"}  # of Azure
    | {"skoid", "sktid", "skt", "ske", "sks", "skv", "saoid", "suoid"}
)
"""The names of parameters that say, beside a signature, for what and how long it holds."""
_KEY = re.compile(r"(?:api_?)?key=[\w-]{16,}", re.ASCII | re.IGNORECASE)
"""A key for an access; a short one, or one with a dot or slash, names an object."""

_LONGEST_SHOWN = 8
"""The length up to which a message shows the value of an unknown parameter: that of a number, not of a secret."""


def without_credentials(location: str) -> str:
    """Returns a URL without user, password and signature; another location as it is.

    The parameters that identify the object stay. So a URL with a new signature is the same as before.
    """
    if "://" not in location:
        return location
    return "::".join(map(_without_credentials, _LINKS.split(location)))


def value_without_credentials(value: Any) -> Any:
    """Returns a setting's value without credentials; a URL is the end of its text, as in `train=https://…`."""
    if isinstance(value, tuple | list):
        return [value_without_credentials(each) for each in value]
    if isinstance(value, str) and (url := _URL.search(value)):
        return value[: url.start()] + without_credentials(value[url.start() :])
    return value


def credentials_hidden(text: str) -> str:
    """Returns a text for people with the URLs in it as `without_credentials` gives them.

    Long values of other parameters are left out too, and so are tokens.
    """
    if "://" in text:
        text = _URL_IN_TEXT.sub(_shown, text)
    return _TOKEN.sub("…", text)


def _shown(found: re.Match[str]) -> str:
    end = re.search(r"[:;,.)\]}]*$", found[0])
    url, punctuation = (found[0][: end.start()], end[0]) if end else (found[0], "")
    before, mark, query = without_credentials(url).partition("?")
    return before + mark + re.sub(rf"=[^&;#]{{{_LONGEST_SHOWN + 1},}}", "=…", query) + punctuation


def _without_credentials(location: str) -> str:
    """Returns one link of a chain without its credentials."""
    if not _URL.match(location):
        return location
    scheme, _, rest = location.partition("://")
    if scheme.lower() not in _NO_USER:
        rest = _without_user(rest)
    place, hash_mark, fragment = rest.partition("#")
    place, query_mark, query = place.partition("?")
    kept = _unsigned(query)
    return f"{scheme}://{place}{query_mark if kept else ''}{kept}{hash_mark}{_unsigned(fragment)}"


def _without_user(rest: str) -> str:
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" in host:
        return rest[host.rindex("@") + 1 :]
    if re.fullmatch(r"[^:]*(:\d*)?|\[.*\](:\d*)?|arn:.*", host):  # by port, of IPv6, an access point of S3
        return rest
    return rest.rpartition("@")[2]  # the password has a slash or a question mark


def _unsigned(query: str) -> str:
    """Returns a query without the parameters of its signature; they and their separators are else as they were."""
    parts = re.split("([&;])", query)
    names = [unquote(part.partition("=")[0]).lower().removeprefix("amp;") for part in parts]
    proofs = [_is_proof(name, part) for name, part in zip(names, parts, strict=True)]
    if not any(proofs):
        return query
    kept = [
        part
        for part, name, proof in zip(parts[::2], names[::2], proofs[::2], strict=True)
        if not (proof or name in _TERMS_NAMES)
    ]
    return "&".join(kept)


def _is_proof(name: str, part: str) -> bool:
    return name in _SIGNATURE_NAMES or name.startswith(_SIGNATURE_PREFIXES) or _KEY.fullmatch(part) is not None
