"""Credentials in URLs: what a run reads with, and what no store, message, log or traceback holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import boto3
import pytest

import embedx
from embedx import sample
from embedx.cli.app import run
from embedx.credentials import credentials_hidden, without_credentials
from embedx.system import file_systems
from tests.servers import HttpServer

SECRET = "SECRETsecret0123456789"
EXTRACT = ("extract", "--backbone", sample.BACKBONE, "--weights", "sample", "--image-size", "32", "-j", "0")


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://u:p@h:80/a%20b.pt?X-Amz-Signature=s#f", "https://h:80/a%20b.pt#f"),
        ("https://h?token=s", "https://h"),
        ("https://h/a?id=7", "https://h/a?id=7"),
        ("https://h/a?id=7?b#c?d", "https://h/a?id=7?b#c?d"),
        ("https://h/a?id=7&x-amz-signature=s&X-Amz-Date=1&size=L", "https://h/a?id=7&size=L"),
        ("https://h/a?sv=2022&st=1&se=2&sr=b&sp=r&sig=s%3D", "https://h/a"),
        ("https://h/a?sp=1&se=2", "https://h/a?sp=1&se=2"),  # Azure's short names, without a signature
        ("https://h/a?GoogleAccessId=u&Expires=1&Signature=s", "https://h/a"),
        ("https://h/a?Expires=1", "https://h/a?Expires=1"),
        ("https://h/a?size=L&Policy=p&Signature=s&Key-Pair-Id=k", "https://h/a?size=L"),
        ("https://h/a?key=photos/1.jpg", "https://h/a?key=photos/1.jpg"),
        ("https://h/a?key=AIzaSyA0123456789abcdef", "https://h/a"),
        ("https://h/a#access_token=s", "https://h/a#"),
        ("https://u:p/a?s@h/x", "https://h/x"),
        ("http://u:p@[::1]:80/x?sig=s", "http://[::1]:80/x"),
        ("zip://a.png::https://u:p@h/z.zip?id=1&sig=s", "zip://a.png::https://h/z.zip?id=1"),
        ("s3://key:secret@bucket/a?b#c@d", "s3://bucket/a?b#c@d"),
        ("s3://arn:aws:s3:eu-west-1:1:accesspoint/a/b@c.jpg", "s3://arn:aws:s3:eu-west-1:1:accesspoint/a/b@c.jpg"),
        ("abfs://container@account.dfs.core.windows.net/a", "abfs://container@account.dfs.core.windows.net/a"),
        ("hf://owner/name@main/model.safetensors", "hf://owner/name@main/model.safetensors"),
        ("a/path@b?token=c", "a/path@b?token=c"),
    ],
)
def test_a_url_keeps_what_identifies_the_object(url: str, kept: str) -> None:
    assert without_credentials(url) == kept
    assert without_credentials(kept) == kept


@pytest.mark.parametrize("version", ["s3", "s3v4"])
def test_what_aws_s_own_library_signs_is_the_plain_url_again(version: str) -> None:
    config = boto3.session.Config(signature_version=version, s3={"addressing_style": "path"})
    keys = {"aws_access_key_id": "AKIA0", "aws_secret_access_key": "x", "aws_session_token": "y"}
    client = boto3.client("s3", region_name="us-east-1", endpoint_url="https://h", config=config, **keys)
    url = client.generate_presigned_url("get_object", Params={"Bucket": "b", "Key": "a b.png", "VersionId": "7"})
    assert "AKIA0" in url and without_credentials(url) == "https://h/b/a%20b.png?versionId=7"


def test_a_text_shows_no_credentials_and_keeps_its_words() -> None:
    text = "--data https://u:p@h/x.csv?sig=abc: can't be read (see 'http://u:p@proxy:3128', hf_0123456789abcdefXY)"
    assert credentials_hidden(text) == "--data https://h/x.csv: can't be read (see 'http://proxy:3128', …)"
    assert credentials_hidden("https://h/a?id=7&unknown=0123456789") == "https://h/a?id=7&unknown=…"
    assert credentials_hidden("Authorization: Bearer abcdef012345") == "Authorization: Bearer …"


def test_what_knows_no_user_gets_none_to_show_as_a_bucket_s_name() -> None:
    assert file_systems.file_system("s3://user:secret@bucket/a@b.png")[1] == "bucket/a@b.png"
    assert file_systems.file_system("s3://bucket/a@b.png")[1] == "bucket/a@b.png"


class Calls:
    """Calls the command line; what it prints must never hold the secret."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capfd = monkeypatch, capfd

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        self.monkeypatch.setattr("sys.argv", ["embedx", *map(str, arguments)])
        code = run()
        stdout, stderr = self.capfd.readouterr()
        assert SECRET not in stdout + stderr
        return code, stdout, stderr


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], one_thread: None) -> Calls:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return Calls(monkeypatch, capfd)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, kind in (("a.png", "star"), ("b.png", "ring")):
        shutil.copy(min((sample.IMAGES / "val" / kind).iterdir()), folder / name)
    (folder / "none.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def assert_kept_nowhere(store: Path) -> None:
    """Also not in a compressed column, whose values are read for that."""
    assert not [path for path in store.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert SECRET not in str(embedx.open(store).index().to_pylist())


def test_signed_urls_in_a_table(call: Calls, photos: Path, tmp_path: Path) -> None:
    table, out = tmp_path / "t.csv", tmp_path / "store"

    def sign(address: str, number: int) -> None:
        urls = [f"{address}/get?id={name}&sig={SECRET}{number}" for name in ("a.png", "b.png", "none.png")]
        table.write_text("\n".join(["path", *urls]))

    with HttpServer(photos, password=SECRET) as address:
        sign(address, 1)
        extract = (*EXTRACT, "--data", table, "--out", out)
        code, _, stderr = call(*extract, "--max-errors", "1")
        assert code == 0 and "2 rows, 1 rejected" in stderr, stderr
        keys = [f"{address}/get?id={name}" for name in ("a.png", "b.png", "none.png")]
        index = embedx.open(out).index()
        assert index["key"].to_pylist() == index["path"].to_pylist() == keys
        assert f"\t{keys[2]}\t" in call("info", out, "--rejected")[1]
        assert_kept_nowhere(out)
        sign(address, 2)
        for options in ([], ["--update"]):
            code, _, stderr = call(*extract, "--max-errors", "1", *options)
            assert code == 0 and "up to date" in stderr
        code, stdout, _ = call("verify", out, "--recompute", "1")
        assert code == 1 and "can't be read any more (can't be read: no access (403" in stdout
        assert "a store keeps no credentials" in stdout
        code, _, stderr = call(*extract[:-1], tmp_path / "other", "--on-error", "fail", "--debug")
        assert code == 1 and "none.png" in stderr


def test_users_and_tokens_in_the_settings(call: Calls, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    (photos / "none.png").unlink()
    with HttpServer(photos, password=SECRET) as address:
        host = address.removeprefix("http://")
        folder = f"named=http://user:{SECRET}@{host}/"
        code, stdout, stderr = call(*EXTRACT, "--data", folder, "--out", out, "--json")
        assert code == 0 and json.loads(stdout)["rows"] == 2, stderr
        assert_kept_nowhere(out)
        assert json.loads((out / "manifest.json").read_text())["settings"]["data"] == [f"named=http://{host}/"]
        code, _, stderr = call(*EXTRACT, "--data", folder, "--out", out)
        assert code == 0 and "up to date" in stderr
        one = f"http://{host}/a.png?sig={SECRET}"
        assert call(*EXTRACT, "--data", one, "--out", tmp_path / "one", "--dry-run", "--json")[0] == 0
        for wrong in (f"http://user:{SECRET}x@{host}/", f"http://{host}/gone.csv?sig={SECRET}"):
            code, _, stderr = call(*EXTRACT, "--data", wrong, "--out", tmp_path / "no", "--debug")
            assert code == 2 and f"http://{host}/" in stderr
    for wrong in (f"htps://user:{SECRET}@h/x?token={SECRET}", f"http://user:{SECRET}@[h/x"):
        assert call(*EXTRACT, "--data", wrong, "--out", tmp_path / "no", "--debug")[0] == 2
        assert call(*EXTRACT, "--checkpoint", wrong, "--out", tmp_path / "no", "--debug")[0] == 2


def test_a_checkpoint_s_new_signature_is_no_other_checkpoint(
    call: Calls, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copy(next(sample.IMAGES.parent.glob("*.safetensors")), photos / "w.safetensors")
    out = tmp_path / "store"
    with HttpServer(photos, password=SECRET) as address:
        for number in (1, 2):
            url = f"{address}/x.safetensors?id=w.safetensors&sig={SECRET}{number}"
            arguments = (*EXTRACT[:3], "--checkpoint", url, *EXTRACT[5:], "--data", photos / "a.png", "--out", out)
            assert call(*arguments)[0] == 0
    assert_kept_nowhere(out)
    assert call("verify", out, "--recompute", "1")[0] == 0
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and SECRET in path.read_text("l1")]
