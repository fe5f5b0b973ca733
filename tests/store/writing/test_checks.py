from __future__ import annotations

from pathlib import Path

import pytest

from embedx.errors import StoreError
from embedx.store.format.layout import Unit
from embedx.store.reading.reader import Store
from embedx.store.reading.verify import verify
from embedx.store.writing.session import StoreSession
from tests.store.builders import build_store, commit, manifest, unit_batch


def flip(path: Path, place: int) -> None:
    """Flips a bit; a negative place counts from the end."""
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("place", [30, -300])
def test_a_damaged_index_table_is_computed_again_and_told(tmp_path: Path, place: int) -> None:
    """In the rows, which only reading them finds, and in the footer; the run before was interrupted."""
    out = tmp_path / "store"
    session = StoreSession.begin(out, manifest({"train": 24}), "create")
    for start in (0, 8):
        commit(session, unit_batch(start, start + 8))
    session.close()
    flip(out / "index/train-00001.parquet", place)
    session = StoreSession.begin(out, manifest({"train": 24}), "resume")
    assert session.is_committed(Unit("train", 0)) and not session.is_committed(Unit("train", 1))
    (told,) = session.checks.told
    assert "index/train-00001.parquet" in told and told.endswith("the rows of its unit are computed again")
    for start in (8, 16):
        commit(session, unit_batch(start, start + 8))
    session.finish({})
    session.close()
    assert list(verify(out)) == [] and Store.open(out).load("train").targets.tolist()[8:] == [0, 1] * 8


def test_a_damaged_index_table_gets_no_fresh_checksum_at_the_end_of_a_run(tmp_path: Path) -> None:
    out = tmp_path / "store"
    session = StoreSession.begin(out, manifest({"train": 16}), "create")
    for start in (0, 8):
        commit(session, unit_batch(start, start + 8))
    flip(out / "index/train-00000.parquet", 30)
    with pytest.raises(StoreError, match=r"train-00000\.parquet.*damaged"):
        session.finish({})
    session.close()
    assert not Store.open(out).complete


def test_a_damaged_shard_of_a_run_that_was_interrupted_is_computed_again(tmp_path: Path) -> None:
    """However young it is: what a crash leaves is read, the last first."""
    out = tmp_path / "store"
    session = StoreSession.begin(out, manifest({"train": 24}), "create")
    for start in (0, 8):
        commit(session, unit_batch(start, start + 8))
    session.close()
    flip(out / "train/dog/shard-00000.safetensors", -1)
    session = StoreSession.begin(out, manifest({"train": 24}), "resume")
    session.close()
    assert session.is_committed(Unit("train", 1)) and not session.is_committed(Unit("train", 0))
    (told,) = session.checks.told
    assert "train/dog/shard-00000.safetensors is damaged (its sha256" in told


def test_a_missing_shard_is_told(tmp_path: Path) -> None:
    out = build_store(tmp_path / "store", inputs=16)
    (out / "train/cat/shard-00001.safetensors").unlink()
    session = StoreSession.begin(out, manifest({"train": 16}), "resume")
    session.close()
    shard = out / "train/cat/shard-00001.safetensors"
    assert list(session.checks.told) == [f"{shard} is missing; the 8 rows of its unit are computed again"]
