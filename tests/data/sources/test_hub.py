"""Data sets of the Hugging Face hub, read through its own client from a server on the loopback interface."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow as pa
import pytest
from huggingface_hub import constants
from pyarrow import parquet

import embedx
from embedx import ExtractConfig, sample
from embedx.data.plan import Plan, build_plan
from embedx.data.sources import parse_data
from embedx.errors import ConfigError
from embedx.run.extract import extract
from embedx.system import remote
from tests.data.sources.test_tar import pack
from tests.runs import run
from tests.servers import HubServer

pytestmark = pytest.mark.usefixtures("one_thread")

PICTURES = sorted((sample.IMAGES / "val").rglob("*.*"))[:4]
FIRST, SECOND = "a" * 40, "b" * 40
REPO = "hf://datasets/owner/shapes"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A repository of two commits, with other pictures in each; `main` leads to the first."""
    for number, commit in enumerate((FIRST, SECOND)):
        root = tmp_path / "hub" / "owner" / "shapes" / commit
        (root / "photos" / "star").mkdir(parents=True)
        pictures = PICTURES[2 * number : 2 * number + 2]
        rows = [{"bytes": picture.read_bytes(), "path": f"{row}.jpg"} for row, picture in enumerate(pictures)]
        (root / "data").mkdir()
        parquet.write_table(pa.table({"image": rows}), root / "data" / "train-00000-of-00001.parquet")
        for row, picture in enumerate(pictures):
            shutil.copy(picture, root / "photos" / "star" / f"{row}.jpg")
        pack(root / "shard-0.tar", {f"{row}.jpg": picture.read_bytes() for row, picture in enumerate(pictures)})
        (root / "README.md").write_text("# Shapes")
    server = HubServer(tmp_path / "hub", {"main": FIRST, "v1.0": FIRST, "refs/pr/1": SECOND})
    with server as address:
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(remote, "_FIRST_DELAY", 0.01)
        yield server
    huggingface_hub.HfFileSystem.clear_instance_cache()


def planned(*specs: str) -> Plan:
    return build_plan(parse_data(specs), None)


@pytest.mark.parametrize("revision", ["", "@main", "@v1.0", f"@{FIRST}", "@refs/pr/1", "@refs%2Fpr%2F1"])
@pytest.mark.parametrize(
    "place", ["data", "data/*.parquet", "data/train-{00000..00000}-of-00001.parquet", "photos", "*.tar"]
)
def test_every_kind_of_source_is_read_at_the_commit_of_its_revision(hub: HubServer, place: str, revision: str) -> None:
    (split,) = planned(f"{REPO}{revision}/{place}").splits.values()
    assert split.name == ("train" if "data" in place else "all")
    commit, pictures = (SECOND, PICTURES[2:]) if "pr" in revision else (FIRST, PICTURES[:2])
    places = split.table.select(["path", "offset", "size"]).to_pylist()
    assert [split.reader.read(**place) for place in places] == [picture.read_bytes() for picture in pictures]
    assert all(place["path"].startswith(f"{REPO}@{commit}/".encode()) for place in places)


def test_a_whole_repository_is_a_folder(hub: HubServer) -> None:
    shutil.rmtree(hub.folder / "owner" / "shapes" / FIRST / "photos")
    for location in (REPO, f"{REPO}/"):
        assert planned(location).splits["train"].table["key"].to_pylist() == [
            f"data/train-00000-of-00001.parquet/{row}.jpg" for row in range(2)
        ]


@pytest.mark.soak
def test_the_store_names_the_commit_and_is_recomputed_from_it_when_the_branch_has_moved(
    hub: HubServer, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    settings: dict[str, Any] = {"backbone": sample.BACKBONE, "weights": "sample", "workers": 0, "batch_size": 2}
    extract(ExtractConfig(data=(f"{REPO}/data",), out=store, **settings))
    assert len(embedx.open(store).load("train").keys) == 2
    (path,) = set(parquet.read_table(store / "index", columns=["path"])["path"].to_pylist())
    assert path == f"{REPO}@{FIRST}/data/train-00000-of-00001.parquet"
    hub.branches["main"] = SECOND
    with pytest.raises(ConfigError, match="--update"):
        extract(ExtractConfig(data=(f"{REPO}/data",), out=store, **settings))
    extract(ExtractConfig(data=(f"{REPO}@{FIRST}/data",), out=store, **settings))
    hub.branches.clear()
    # In a process of its own, as libraries that were imported here before keep the hub's real address.
    done = run("verify", store, "--recompute", "2")
    assert done.returncode == 0 and "2 rows recomputed" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("hf://datasets/owner/nothing", "not found"),
        (f"{REPO}@v9", "not found"),
        (f"{REPO}/none", "no images in .*/none; looked for"),
        (f"{REPO}/data/none.parquet", "not found"),
        (f"{REPO}/data/none-*.parquet", "no such file"),
        ("hf://datasets/shapes", "must be 'namespace/name'"),
        ("hf://datasets/owner/gated", "no access .*gated"),
    ],
)
def test_what_is_not_there_or_not_for_everybody_is_refused_by_name(hub: HubServer, location: str, message: str) -> None:
    (hub.folder / "owner" / "gated").mkdir()
    hub.gated.add("owner/gated")
    with pytest.raises(ConfigError, match=message) as refusal:
        planned(location)
    assert "\n" not in str(refusal.value) and "hf://datasets/" in str(refusal.value)


def test_a_hub_that_fails_for_a_while_is_asked_again(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [(503, "", b""), (500, "", b"")]
    whole = hub.answer
    monkeypatch.setattr(hub, "answer", lambda path: answers.pop() if answers else whole(path))
    assert len(planned(f"{REPO}/photos").splits["all"]) == 2 and not answers
