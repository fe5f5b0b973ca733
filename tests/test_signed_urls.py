"""A run over URLs that a key has signed leaves neither the signature nor the key anywhere."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedx
from embedx import sample
from embedx.cli import app
from tests.runs import run
from tests.servers import no_access, s3_server, upload
from tests.slow_server import SlowServer

KEY, SECRET, TOKEN = "AKIAVERYSECRETKEYID0", "verySecretAccessKey0123456789", "sessionToken0123456789abcdef"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four images, one of them damaged."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, path in enumerate(sorted((sample.IMAGES / "val").rglob("*.*"))[:4]):
        shutil.copy(path, folder / f"{number}.png")
    (folder / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def written(folder: Path) -> bytes:
    """All that is in the files of a folder, with the columns and the metadata of Parquet and Arrow files in plain."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.append(path.read_bytes())
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            found.append(
                repr((table.to_pydict(), table.schema, table.schema.metadata, pq.read_metadata(path))).encode()
            )
        if path.suffix == ".arrow":
            with pa.OSFile(str(path)) as file:
                found.append(repr(pa.ipc.open_file(file).read_all().to_pydict()).encode())
    return b"\n".join(found)


@pytest.mark.usefixtures("one_thread")
def test_nothing_that_a_run_over_signed_urls_writes_or_says_has_the_signature(
    tmp_path: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    server = SlowServer({})
    with s3_server() as client, server as address, pytest.MonkeyPatch.context() as patch:
        upload(client, "lake", photos)
        for name, value in zip(
            ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN"), (KEY, SECRET, TOKEN), strict=True
        ):
            patch.setenv(f"AWS_{name}", value)
        patch.setenv("TMPDIR", str(tmp_path / "tmp"))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        (tmp_path / "tmp").mkdir()
        config = boto3.session.Config(signature_version="s3v4")
        signer = boto3.session.Session().client("s3", config=config)

        def call(*arguments: str | Path) -> None:
            patch.setattr("sys.argv", ["embedx", *map(str, arguments)])
            app.run()

        def signed(key: str) -> str:
            url = signer.generate_presigned_url("get_object", Params={"Bucket": "lake", "Key": key})
            assert KEY in url and "X-Amz-Signature=" in url and TOKEN in url
            return str(url)

        signatures = {signed(f"{number}.png").split("X-Amz-Signature=")[1].partition("&")[0] for number in range(4)}
        server.redirects = {"good.png": signed("1.png"), "gone.png": signed("gone.png")}
        urls = [*(signed(f"{number}.png") for number in range(4)), signed("gone.png")]
        urls += [
            f"{address}/good.png",
            f"{address}/gone.png",
            f"s3://{KEY}:{SECRET}@lake/2.png",
            "s3://lake/nothing.png",
        ]
        with (tmp_path / "t.csv").open("w", newline="") as file:
            rows = csv.DictWriter(file, ["path", "source", "label"])
            rows.writeheader()
            rows.writerows({"path": url, "source": signed("1.png"), "label": "x"} for url in urls)
        common = ("extract", "--backbone", sample.BACKBONE, "--weights", "sample", "-b", "4", "--debug")
        table = ("--data", tmp_path / "t.csv", "--max-errors", "9", "--out", store)
        by_worker = run(*common, *table, "-j", "1", "--progress", "json", "--json")
        said = [by_worker.stdout, by_worker.stderr]
        call(*common, *table, "-j", "0", "--update", "--retry-rejected")
        call(*common, "-j", "0", "--data", f"gone={signed('gone.csv')}", "--out", tmp_path / "none")
        with no_access():
            call(*common, "-j", "0", *table[:-1], tmp_path / "none", "--json")
        for command in (
            ("verify", store, "--recompute", "1"),
            ("info", store, "--rejected"),
            ("info", store, "--json"),
        ):
            call(*command)
        call("report", store, "--out", tmp_path / "report.html")
    said += capfd.readouterr()
    index = embedx.open(store).index().sort_by("index")
    assert index["status"].to_pylist() == [*["ok"] * 3, *["rejected"] * 2, "ok", "rejected", "ok", "rejected"]
    assert index["reason"].to_pylist()[4] == "can't be read: not found"
    assert json.loads(by_worker.stdout)["rejected"] == 4, by_worker.stderr
    everything = written(tmp_path / "store") + written(tmp_path / "tmp") + written(tmp_path / "cache")
    everything += written(tmp_path / "none") + (tmp_path / "report.html").read_bytes()
    everything += "\n".join(said).encode()
    for secret in (KEY, SECRET, TOKEN, "X-Amz-", "x-amz-", "Signature", *signatures):
        place = everything.find(secret.encode())
        assert place < 0, everything[max(0, place - 300) : place + 100]
