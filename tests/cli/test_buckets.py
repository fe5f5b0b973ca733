"""The commands that read stores, on a store in a bucket: the same as on its copy on this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.calls import Embedx
from tests.servers import s3_server, upload
from tests.store.builders import write_features

URL = "s3://bucket/stores/features"
FETCHED = re.compile(r"^fetched [\d.]+ KiB in \d+ requests$", re.MULTILINE)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with s3_server() as client:
        yield client


@pytest.fixture(scope="module")
def store(client: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The copy on this machine."""
    generator = torch.Generator().manual_seed(0)
    splits = {}
    for split, rows in (("train", 150), ("val", 60)):
        targets = torch.arange(rows) % 3
        splits[split] = (torch.randn(rows, 8, generator=generator) + 2 * targets[:, None], targets.tolist())
    store = write_features(tmp_path_factory.mktemp("local") / "features", splits, names=["a", "b", "c"])
    upload(client, "bucket", store, "stores/features/")
    return store


COMMANDS = {
    "info": ["info", "STORE", "--json"],
    "rejected": ["info", "STORE", "--rejected"],
    "probe": ["probe", "STORE", "--l2", "0.01", "--json"],
    "knn": ["probe", "STORE", "--method", "knn", "--json"],
    "search": ["search", "STORE", "--row", "val:key-3", "--json"],
    "condition": ["search", "STORE", "--row", "val:key-3", "--where", "class = 'b'", "--json"],
    "duplicates": ["duplicates", "STORE", "--json"],
    "two stores": ["duplicates", "STORE", "STORE", "--json"],
    "compare": ["compare", "STORE", "STORE", "--json"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_prints_the_same_and_what_it_fetched(call: Embedx, store: Path, command: str) -> None:
    code, stdout, stderr = call(*(URL if word == "STORE" else word for word in COMMANDS[command]))
    local = call(*(store if word == "STORE" else word for word in COMMANDS[command]))
    assert (code, local.code) == (0, 0), stderr
    timed = re.compile(r'"seconds": [\d.]+')
    assert timed.sub("", stdout).replace(URL, "STORE") == timed.sub("", local.stdout).replace(str(store), "STORE")
    assert FETCHED.search(stderr) and "fetched" not in local.stderr


def test_verify_states_what_it_fetched(call: Embedx, store: Path) -> None:
    code, stdout, stderr = call("verify", URL, "--json")
    report = json.loads(stdout)
    assert code == 0 and report["ok"] and f"{URL} is whole" in stderr and FETCHED.search(stderr)
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    assert size <= report["fetched"]["bytes"] < size + 10_000 and report["fetched"]["requests"] > 5
    assert "fetched" not in json.loads(call("verify", store, "--json").stdout)


def test_a_report_and_an_export_are_the_same(call: Embedx, store: Path, tmp_path: Path) -> None:
    for name, place in (("there", URL), ("here", store)):
        assert call("export", place, "--out", tmp_path / name)[0] == 0
        assert call("report", place, "--map", "pca", "--no-images", "--out", tmp_path / f"{name}.html")[0] == 0
    files = sorted(path.relative_to(tmp_path / "here") for path in (tmp_path / "here").rglob("*.parquet"))
    assert files
    assert all((tmp_path / "here" / file).read_bytes() == (tmp_path / "there" / file).read_bytes() for file in files)
    pages = [(tmp_path / f"{name}.html").read_text() for name in ("there", "here")]
    assert len(pages[0]) - len(pages[1]) == pages[0].count(URL) * (len(URL) - len(str(store)))


def test_an_index_is_built_on_this_machine(call: Embedx, store: Path, tmp_path: Path) -> None:
    code, stdout, stderr = call("index", URL)
    assert (code, stdout) == (2, "") and "give --out FOLDER" in stderr.splitlines()[-1]
    assert call("index", URL, "--out", tmp_path / "index")[0] == 0
    asked = ("--row", "val:key-3", "--approximate", "--index", tmp_path / "index", "--json")
    assert call("search", URL, *asked).stdout == call("search", store, "--row", "val:key-3", "--json").stdout


def test_an_index_that_lies_in_the_bucket_is_used(call: Embedx, client: Any, store: Path) -> None:
    assert call("index", store)[0] == 0
    upload(client, "bucket", store, "stores/indexed/")
    for path in (store / "@faiss").iterdir():
        path.unlink()
    (store / "@faiss").rmdir()
    exact = call("search", store, "--row", "val:key-3", "--json").stdout
    ended = call("search", "s3://bucket/stores/indexed", "--row", "val:key-3", "--approximate", "--json")
    assert ended.stdout == exact, ended.stderr


@pytest.mark.parametrize(
    "command, code, words",
    [
        (["repair", URL], 2, "only a store on this machine is repaired; copy it"),
        (["info", "s3://no-such-bucket/store"], 2, "no such bucket; check its name"),
        (["verify", "s3://bucket/nothing"], 2, "is not a store: it has no manifest.json"),
        (["info", "s3://"], 2, "write s3://BUCKET/NAME"),
        (["probe", "gopher://bucket/store"], 2, "unknown scheme 'gopher'"),
    ],
)
def test_what_is_refused_is_one_message(call: Embedx, store: Path, command: list[str], code: int, words: str) -> None:
    ended = call(*command)
    assert (ended.code, ended.stdout) == (code, "")
    assert words in ended.stderr and "Traceback" not in ended.stderr
    assert ended.stderr.count("\n") == (2 if "`embedx info --help`" in ended.stderr else 1)
