"""Checkpoints behind URLs, from a server on the loopback interface."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torchvision import models

import embedx
from embedx import ExtractConfig, sample
from embedx.errors import CheckpointError, ConfigError
from embedx.run.extract import extract
from embedx.run.prepare import prepare
from embedx.system import downloads, remote
from tests.runs import run
from tests.servers import HttpServer, s3_server, upload

SMALL = "shufflenet_v2_x0_5"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_FIRST_DELAY", 0.01)
    return tmp_path / "cache/embedx"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HttpServer]:
    (tmp_path / "files").mkdir()
    torch.save({"state_dict": models.get_model(SMALL, weights=None).state_dict()}, tmp_path / "files/last.ckpt")
    yield HttpServer(tmp_path / "files")


def settings(checkpoint: str, out: Path) -> ExtractConfig:
    data = (str(sample.IMAGES / "val/disc"),)
    return ExtractConfig(backbone=SMALL, checkpoint=checkpoint, data=data, out=out, image_size=32, workers=0)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_it_is_fetched_once_and_gives_the_rows_of_the_file(server: HttpServer, tmp_path: Path, cache: Path) -> None:
    with server as address:
        url = f"{address.replace('//', '//user:secret@')}/last.ckpt?Signature=secret"
        extract(settings(url, tmp_path / "store"))
        requests = len(server.requests)
        assert extract(settings(url, tmp_path / "store")).up_to_date and len(server.requests) == requests
    extract(settings(url, tmp_path / "again"))  # without the server
    extract(settings(str(tmp_path / "files/last.ckpt"), tmp_path / "local"))
    rows = [embedx.open(tmp_path / name).load("all").embeddings for name in ("store", "again", "local")]
    assert len(rows[0]) > 0 and all((other == rows[0]).all() for other in rows[1:])
    manifest = json.loads((tmp_path / "store/manifest.json").read_bytes())
    assert manifest["recipe"] == json.loads((tmp_path / "local/manifest.json").read_bytes())["recipe"]
    assert manifest["settings"]["checkpoint"] == f"{address}/last.ckpt"
    assert all(b"secret" not in path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert files(cache) == ["last.ckpt", "last.ckpt.fetched"]
    assert b"secret" not in next(cache.rglob("*.fetched")).read_bytes()
    assert prepare(ExtractConfig.from_json({**manifest["settings"], "out": str(tmp_path / "x")})).spec.architecture


def test_the_command_says_what_is_fetched_and_shows_no_secret(server: HttpServer, tmp_path: Path) -> None:
    with server as address:
        url = f"{address}/last.ckpt?token=secret"
        done = run(
            *("extract", "--backbone", SMALL, "--checkpoint", url, "--image-size", "32", "--workers", "0"),
            *("--data", sample.IMAGES / "val/disc", "--out", tmp_path / "store"),
        )
    assert f"fetching {address}/last.ckpt (" in done.stderr and "MiB) into " in done.stderr
    assert re.search(rf"{address}/last.ckpt: \d+ tensors matched, prefix 'state_dict.' stripped", done.stderr)
    assert "secret" not in done.stderr + done.stdout


def test_a_dry_run_fetches_nothing(server: HttpServer, tmp_path: Path, cache: Path) -> None:
    with server as address:
        job = prepare(settings(f"{address}/last.ckpt", tmp_path / "store"), download=False)
    assert job.recipe.weights == {"name": "checkpoint", "sha256": "not in the cache"}
    assert server.requests == [] and not cache.exists()


def test_what_is_damaged_in_the_cache_is_fetched_anew(server: HttpServer) -> None:
    told: list[str] = []
    with server as address:
        path = downloads.fetch(f"{address}/last.ckpt", told.append)
        whole = path.read_bytes()
        assert downloads.fetch(f"{address}/last.ckpt", told.append) == path and len(told) == 1
        damages: list[Callable[[], object]] = [
            lambda: path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1])),
            lambda: path.write_bytes(whole[:100]),
            path.unlink,
            lambda: path.with_name(f"{path.name}.fetched").write_text("{"),
        ]
        for number, damage in enumerate(damages):
            damage()
            assert downloads.fetch(f"{address}/last.ckpt", told.append).read_bytes() == whole
            assert len(told) == number + 2


@pytest.mark.parametrize("failures", [[503, 0], [0]])
def test_what_fails_for_a_while_is_tried_again(server: HttpServer, tmp_path: Path, failures: list[int]) -> None:
    with server as address:
        server.failures.extend(failures)
        path = downloads.fetch(f"{address}/last.ckpt", lambda _: None)
    assert path.read_bytes() == (tmp_path / "files/last.ckpt").read_bytes()


def test_what_can_not_be_fetched_leaves_nothing(server: HttpServer, tmp_path: Path, cache: Path) -> None:
    with server as address:
        with pytest.raises(ConfigError, match=r"last\.pt: can't be fetched \(not found\); check the URL") as caught:
            extract(settings(f"{address}/last.pt?token=secret", tmp_path / "store"))
        assert "secret" not in str(caught.value) and files(cache) == []
        server.failures.extend([403] * 9)
        with pytest.raises(ConfigError, match=r"can't be fetched \(no access"):
            extract(settings(f"{address}/last.ckpt", tmp_path / "store"))
    with pytest.raises(ConfigError, match="can't be fetched"):
        extract(settings(f"{address}/last.ckpt", tmp_path / "store"))
    with pytest.raises(ConfigError, match="unknown scheme 'htps'; did you mean https"):
        extract(settings("htps://host/last.ckpt", tmp_path / "store"))
    assert not (tmp_path / "store").exists() and files(cache) == []


def test_the_shards_of_an_index_come_with_it(tmp_path: Path, cache: Path) -> None:
    state = models.get_model(SMALL, weights=None).state_dict()
    weights = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(state)}
    (folder := tmp_path / "files").mkdir()
    for file in set(weights.values()):
        safetensors.torch.save_file({name: state[name] for name in state if weights[name] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weights}))
    with HttpServer(folder) as address:
        path = downloads.fetch(f"{address}/{index.name}", lambda _: None)
    assert downloads.fetch(f"{address}/{index.name}", lambda _: None) == path
    local, fetched = (prepare(settings(str(name), tmp_path / "store")).recipe.weights for name in (index, path))
    assert local == fetched
    next(path.parent.glob("*00002-of-00002.safetensors")).write_bytes(b"x")
    with pytest.raises(CheckpointError, match="can't be fetched"):
        downloads.fetch(f"{address}/{index.name}", lambda _: None)


def test_a_bucket_s_file_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    torch.save({"a": torch.ones(9)}, tmp_path / "files/last.ckpt")
    with s3_server() as client:
        upload(client, "lake", tmp_path / "files", "runs/")
        path = downloads.fetch("s3://lake/runs/last.ckpt", lambda _: None)
    assert path.read_bytes() == (tmp_path / "files/last.ckpt").read_bytes()
