"""Replaces one version of an object in Google's storage, and no other; gcsfs has no option for that condition."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

_LOCATION = "https://storage.googleapis.com"


def replace(fs: Any, path: str, data: bytes, metadata: Mapping[str, str], generation: str) -> None:
    """Writes an object by one request, as https://cloud.google.com/storage/docs/json_api/v1/objects/insert has it.

    Args:
        fs: The file system of gcsfs, which signs the request.
        path: The bucket and the name, with a slash between them.
        data: The bytes of the object.
        metadata: The object's own metadata.
        generation: The generation of the object that is there.

    Raises:
        Exception: As gcsfs raises it; of status 412 if another one is there.
    """
    bucket, _, name = path.strip("/").partition("/")
    described, border = json.dumps({"name": name, "metadata": dict(metadata)}), secrets.token_hex(16)
    head = f"--{border}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{described}\r\n"
    head += f"--{border}\r\nContent-Type: application/octet-stream\r\n\r\n"
    fs.call(
        "POST",
        f"{getattr(fs, '_location', None) or _LOCATION}/upload/storage/v1/b/{quote(bucket, safe='')}/o",
        uploadType="multipart",
        ifGenerationMatch=generation,
        headers={"Content-Type": f'multipart/related; boundary="{border}"'},
        data=head.encode() + data + f"\r\n--{border}--\r\n".encode(),
    )
