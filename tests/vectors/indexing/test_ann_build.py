"""Approximate indexes: what they find beside numpy's brute force, and what they are refused for."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import embedx
from embedx import IndexResult
from embedx.api.store_verbs import index_by
from embedx.errors import ConfigError, StoreError
from embedx.heartbeat import Heartbeat
from embedx.store.format.layout import MANIFEST
from embedx.store.format.manifest import Manifest
from embedx.vectors.indexing.ann_config import IndexConfig
from embedx.vectors.indexing.ann_file import FOLDER
from tests.disks import small_disk
from tests.store.builders import write_features

GENERATOR = torch.Generator().manual_seed(0)
CENTRES = torch.randn(60, 16, generator=GENERATOR)
TARGETS = torch.randint(0, 60, (3000,), generator=GENERATOR)
ROWS = CENTRES[TARGETS] + 0.4 * torch.randn(3000, 16, generator=GENERATOR)
SPLITS: dict[str, tuple[torch.Tensor, list[int | None]]]
SPLITS = {"train": (ROWS[:2600], [None] * 2600), "val": (ROWS[2600:], [None] * 400)}
UNITS = torch.nn.functional.normalize(ROWS.double()).numpy()
EXACT = UNITS @ UNITS.T - 4 * np.eye(3000)
FACTORY = "IVF60,SQ8"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_features(tmp_path_factory.mktemp("stores") / "store", SPLITS, rows_per_unit=500)


@pytest.fixture(scope="module")
def built(store: Path) -> IndexResult:
    return index_by(store, IndexConfig(factory=FACTORY, threads=1))


def copied(store: Path, place: Path) -> Path:
    shutil.copytree(store, place)
    return place


def numbers_found(store: Path, numbers: list[int], **options: object) -> list[list[int]]:
    """The numbers of the rows that an approximate search finds for rows of the store, as keys and splits tell them."""
    rows = [f"train:key-{number}" if number < 2600 else f"val:key-{number - 2600}" for number in numbers]
    found = embedx.search(store, rows=rows, approximate=True, **options)
    return [
        [int(each.key.removeprefix("key-")) + (2600 if each.split == "val" else 0) for each in answer.neighbours]
        for answer in found.answers
    ]


def test_the_recall_that_is_stated_is_that_of_numpy_s_brute_force(store: Path, built: IndexResult) -> None:
    facts = built.index.facts
    assert built.built and facts.recall >= 0.95 and facts.recall_rows == 1000
    assert facts.depth is not None and 1 <= facts.depth.value < facts.depth.most == 60
    chosen = np.random.default_rng(0).choice(3000, 1000, replace=False).tolist()
    truth = [set(np.argsort(-EXACT[number])[:10].tolist()) for number in chosen]
    found = numbers_found(store, chosen)
    hits = sum(len(true & set(own)) for true, own in zip(truth, found, strict=True))
    assert facts.recall == hits / 10_000
    assert facts.rows == facts.indexed == 3000 and facts.splits == ["train", "val"]


def test_similarities_are_exact_and_keys_stay_at_their_vectors(store: Path, built: IndexResult) -> None:
    result = embedx.search(store, ROWS[5:8], k=7, approximate=True)
    assert result.recall == built.index.facts.recall
    for row, answer in zip(ROWS[5:8].double(), result.answers, strict=True):
        for each in answer.neighbours:
            own = ROWS[int(each.key.removeprefix("key-")) + (2600 if each.split == "val" else 0)].double()
            cosine = float(row @ own / row.norm() / own.norm())
            assert each.similarity == pytest.approx(cosine, abs=1e-12)
        ranked = [each.similarity for each in answer.neighbours]
        assert ranked == sorted(ranked, reverse=True) and ranked[0] == pytest.approx(1, abs=1e-12)


def test_more_recall_looks_at_more_and_all_of_it_is_the_exact_search(store: Path, tmp_path: Path) -> None:
    config = IndexConfig(factory="IVF60,Flat", recall=1, threads=1, out=tmp_path / "index")
    facts = index_by(store, config).index.facts
    assert facts.recall == 1 and facts.depth is not None and facts.depth.value > 1
    flat = IndexConfig(factory="Flat", threads=1, out=tmp_path / "flat")
    facts = index_by(store, flat).index.facts
    assert facts.recall == 1 and facts.depth is None
    rows = [f"train:key-{number}" for number in range(0, 2600, 100)]
    exact = embedx.search(store, rows=rows, k=13)
    by_flat = embedx.search(store, rows=rows, k=13, approximate=True, index=tmp_path / "flat")
    assert by_flat.answers == exact.answers


def test_a_recall_that_can_t_be_reached_is_told_as_it_is(store: Path, tmp_path: Path) -> None:
    facts = index_by(store, IndexConfig(factory="IVF10,PQ1x4", threads=1, out=tmp_path)).index.facts
    assert 0 < facts.recall < 0.95 and facts.depth is not None and facts.depth.value <= 10


@pytest.mark.parametrize("factory", [FACTORY, "IVF10,PQ4np", "HNSW8"])
def test_the_same_store_and_seed_give_the_same_bytes(store: Path, tmp_path: Path, factory: str) -> None:
    """With as many threads; HNSW with one alone."""
    threads = 1 if factory.startswith("HNSW") else 2
    results = [
        index_by(store, IndexConfig(factory=factory, threads=threads, out=tmp_path / name)).index for name in ("a", "b")
    ]
    a, b = ({path.name: path.read_bytes() for path in index.folder.iterdir()} for index in results)
    assert a == b and len(a) == 2
    other = index_by(store, IndexConfig(factory=factory, threads=threads, seed=1, out=tmp_path / "c")).index
    assert other.facts.sha256 == results[0].facts.sha256  # as the sample has all rows here
    assert other.facts.seed == 1


def test_one_that_is_there_is_kept_and_other_settings_need_a_word(store: Path, built: IndexResult) -> None:
    before = built.index.path.stat()
    again = index_by(store, IndexConfig(factory=FACTORY, threads=1))
    assert not again.built and again.index == built.index and built.index.path.stat() == before
    with pytest.raises(ConfigError, match=r"factory was IVF60,SQ8, and is Flat.*--overwrite"):
        embedx.build_index(store)
    with pytest.raises(ConfigError, match=r"splits was .* recall was 0.95, and is 0.5"):
        index_by(store, IndexConfig(factory=FACTORY, split=("val",), recall=0.5))


def test_another_store_s_index_is_not_replaced_without_a_word(store: Path, tmp_path: Path) -> None:
    other = write_features(tmp_path / "other", {"all": (ROWS[:50], [None] * 50)})
    first = index_by(other, IndexConfig(threads=1, out=tmp_path / "index"))
    with pytest.raises(ConfigError, match=r"has an index of another store.*--overwrite"):
        index_by(store, IndexConfig(factory="Flat", out=tmp_path / "index"))
    assert index_by(other, IndexConfig(threads=1, out=tmp_path / "index")).index == first.index
    config = IndexConfig(factory="Flat", out=tmp_path / "index", overwrite=True)
    assert index_by(store, config).index.facts.rows == 3000


def test_overwriting_leaves_one_index_and_a_killed_build_s_file_is_removed(store: Path, tmp_path: Path) -> None:
    own = copied(store, tmp_path / "store")
    first = index_by(own, IndexConfig(factory="Flat", threads=1, overwrite=True)).index
    (own / FOLDER / ".embeddings.999999999.part").write_bytes(b"half")
    (own / FOLDER / "notes.txt").write_text("somebody else's")
    second = index_by(own, IndexConfig(factory="IVF4,Flat", threads=1, overwrite=True)).index
    assert first.path != second.path
    assert sorted(os.listdir(own / FOLDER)) == sorted([second.path.name, "embeddings.json", "notes.txt"])
    assert list(embedx.verify(own)) == []
    assert len(embedx.compare(own, store).drift) == 1


@pytest.mark.parametrize("count", [1, 2, 10, 50])
def test_few_rows(tmp_path: Path, count: int) -> None:
    store = write_features(tmp_path / "store", {"all": (ROWS[:count], [None] * count)})
    facts = index_by(store, IndexConfig(threads=1)).index.facts
    assert (facts.factory, facts.recall, facts.recall_rows, facts.indexed) == ("Flat", 1, count, count)
    found = embedx.search(store, ROWS[0], k=100, approximate=True).answers[0].neighbours
    assert len(found) == count and found[0].key == "key-0"
    assert len(embedx.search(store, rows="key-0", k=100, approximate=True).answers[0].neighbours) == count - 1


def test_rows_that_are_zero_or_not_finite_are_never_found(tmp_path: Path) -> None:
    rows = ROWS[:300].clone()
    rows[7], rows[30, 3], rows[31, 0], rows[299] = 0, torch.nan, torch.inf, 0
    store = write_features(tmp_path / "store", {"all": (rows, [None] * 300)})
    facts = index_by(store, IndexConfig(factory="IVF5,Flat", threads=1)).index.facts
    assert (facts.rows, facts.indexed) == (300, 296)
    found = embedx.search(store, ROWS[:20], k=300, approximate=True).answers
    odd = {f"key-{row}" for row in (7, 30, 31, 299)}
    for answer in found:
        assert {each.key for each in answer.neighbours} == {f"key-{row}" for row in range(300)} - odd
    nothing = write_features(tmp_path / "zeros", {"all": (torch.zeros(20, 4), [None] * 20)})
    with pytest.raises(ConfigError, match="all zeros, or has NaN"):
        embedx.build_index(nothing)
    assert not (nothing / FOLDER).exists()


def test_more_of_the_index_is_looked_at_where_the_lists_have_too_few_rows(store: Path, built: IndexResult) -> None:
    assert all(len(set(found)) == 2999 for found in numbers_found(store, [0, 2999], k=5000))
    assert all(len(set(found)) == 700 for found in numbers_found(store, [0, 2999], k=700))


def test_an_index_is_of_its_splits_and_tensor(store: Path, tmp_path: Path) -> None:
    config = IndexConfig(factory="Flat", split=("val", "train"), threads=1, out=tmp_path)
    facts = index_by(store, config).index.facts
    assert facts.splits == ["val", "train"]
    exact = embedx.search(store, rows="val:key-3").answers[0].neighbours
    found = embedx.search(store, rows="val:key-3", approximate=True, index=tmp_path).answers[0].neighbours
    assert [(each.split, each.key, each.similarity) for each in found] == [
        (each.split, each.key, each.similarity) for each in exact
    ]
    with pytest.raises(ConfigError, match="the index has the splits val, train, and the search is in val"):
        embedx.search(store, rows="val:key-3", split="val", approximate=True, index=tmp_path)
    with pytest.raises(ConfigError, match=r"has no index of 'layer4'; `embedx index .* --name layer4`"):
        embedx.search(store, rows="val:key-3", name="layer4", approximate=True)
    with pytest.raises(ConfigError, match="unknown tensor 'layer4'"):
        index_by(store, IndexConfig(name="layer4"))
    with pytest.raises(ConfigError, match="--where and --approximate"):
        embedx.search(store, rows="val:key-3", where="target = 1", approximate=True)
    with pytest.raises(ConfigError, match="--index is for --approximate"):
        embedx.search(store, rows="val:key-3", index=tmp_path)


def test_damage_is_told(store: Path, tmp_path: Path, built: IndexResult) -> None:
    own = copied(store, tmp_path / "store")
    path = own / FOLDER / built.index.path.name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"faiss is damaged \(its sha256 is another\); run `embedx index --overwrite`"):
        embedx.search(own, rows="val:key-3", approximate=True)
    path.unlink()
    with pytest.raises(StoreError, match="can't be read"):
        embedx.search(own, rows="val:key-3", approximate=True)
    assert index_by(own, IndexConfig(factory=FACTORY, threads=1)).index.facts == built.index.facts
    facts = json.loads((own / FOLDER / "embeddings.json").read_text())
    for change in ({"file": "../../etc/passwd"}, {"recall": "high"}, {"format": 2}):
        (own / FOLDER / "embeddings.json").write_text(json.dumps(facts | change))
        with pytest.raises(StoreError, match=r"embeddings\.json"):
            embedx.search(own, rows="val:key-3", approximate=True)


def test_a_damaged_shard_is_found_while_the_index_is_built(store: Path, tmp_path: Path) -> None:
    own = copied(store, tmp_path / "store")
    shutil.rmtree(own / FOLDER)
    shard = sorted((own / "val").iterdir())[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=shard.name):
        index_by(own, IndexConfig(factory="IVF10,Flat", threads=1))
    assert not (own / FOLDER).exists()


def test_an_unfinished_store_has_no_index(store: Path, tmp_path: Path) -> None:
    own = copied(store, tmp_path / "store")
    begun = Manifest.read(store)
    Manifest(begun.recipe, begun.plan, begun.environment).write(own)
    with pytest.raises(ConfigError, match="is not complete, and its rows will change"):
        embedx.build_index(own)
    with pytest.raises(ConfigError, match="the store has changed since its index was built; run `embedx index"):
        embedx.search(own, rows="val:key-3", approximate=True)
    shutil.copy2(store / MANIFEST, own / MANIFEST)
    assert embedx.search(own, rows="val:key-3", approximate=True).recall


def test_a_store_that_is_replaced_meanwhile_is_indexed_as_it_is_then(store: Path, tmp_path: Path) -> None:
    own = write_features(tmp_path / "store", {"all": (ROWS[:100], [None] * 100)})
    other = write_features(tmp_path / "other", {"all": (ROWS[100:300], [None] * 200)})

    class Replacing(Heartbeat):
        def say(self, doing: str) -> None:
            if doing == "writing the index" and other.exists():
                own.rename(tmp_path / "before")
                other.rename(own)

    result = index_by(own, IndexConfig(factory="Flat", threads=1), Replacing(Console(quiet=True)))
    assert result.index.facts.rows == 200
    found = embedx.search(own, ROWS[150], k=1, approximate=True).answers[0].neighbours
    assert [each.key for each in found] == ["key-50"]


def test_an_index_that_can_t_be_written_leaves_nothing(store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file: the index can't be written \(File exists"):
        index_by(store, IndexConfig(factory="Flat", out=tmp_path / "file"))
    with small_disk(tmp_path / "disk", "128k") as disk:
        with pytest.raises(StoreError, match=r"the index can't be written \(No space left on device"):
            index_by(store, IndexConfig(factory="Flat", out=disk / "index"))
        assert not list(disk.iterdir())


def test_all_faults_of_the_settings_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        IndexConfig(factory=" ", recall=0, seed=-1, threads=0, split=("a", "a")).validate()
    assert len(error.value.faults) == 5
