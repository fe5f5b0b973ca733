from __future__ import annotations

import dataclasses
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from embedx.errors import ConfigError, StoreError, StoreLockedError, StoreMismatchError
from embedx.store.format import layout
from embedx.store.format.contents import Environment
from embedx.store.format.layout import Unit
from embedx.store.format.manifest import Manifest
from embedx.store.reading.reader import Store
from embedx.store.reading.verify import verify
from embedx.store.writing.lock import StoreLock
from embedx.store.writing.session import StoreSession
from embedx.store.writing.session_choice import Mode
from embedx.store.writing.units import UnitBuffer
from tests.store.builders import build_store, manifest, unit_batch


def commit(session: StoreSession, start: int, stop: int) -> None:
    batch = unit_batch(start, stop)
    buffer = UnitBuffer(session.terms)
    buffer.add(batch)
    buffer.commit()


def test_resume_knows_what_is_committed_and_clears_what_is_half(tmp_path: Path) -> None:
    out = tmp_path / "store"
    session = StoreSession.begin(out, manifest({"train": 16}), "resume")
    commit(session, 0, 8)
    commit(session, 8, 16)
    session.close()
    (out / "index/train-00001.parquet").unlink()  # as if killed between shards and index table
    (out / "train/cat/.shard-00001.safetensors.embedx-tmp").write_bytes(b"half")
    (out / "notes.txt").write_text("a stranger's")
    session = StoreSession.begin(out, manifest({"train": 16}), "resume")
    assert session.is_committed(Unit("train", 0)) and not session.is_committed(Unit("train", 1))
    assert {path.rpartition("/")[2] for *_, path in layout.shard_files(out)} == {"shard-00000.safetensors"}
    assert not list(layout.temporary_files(out))
    with pytest.raises(StoreError, match="16 inputs, but 8"):
        session.finish({})
    assert not Manifest.read(out).complete
    commit(session, 8, 16)
    assert session.finish({}).totals["train"].inputs == 16
    session.close()
    assert (out / "notes.txt").is_file()
    assert list(verify(out)) == []


def test_another_recipe_is_refused_with_what_differs_and_other_inputs_are_to_be_compared(tmp_path: Path) -> None:
    out = build_store(tmp_path / "store")
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(StoreMismatchError, match=r"recipe\.name: r → other"):
        StoreSession.begin(out, manifest({"train": 12}, recipe="other"), "resume")
    for inputs in ({"train": 13}, {"val": 12}):
        session = StoreSession.begin(out, manifest(inputs), "resume")
        assert session.needs_comparison and not session.inputs_are_the_same
        session.close()
    assert (out / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("mode", ["create", "resume", "overwrite"])
@pytest.mark.parametrize("name", ["cat.jpg", "manifest.json"])
def test_a_folder_that_is_not_a_store_is_left_alone(tmp_path: Path, mode: Mode, name: str) -> None:
    """Others have files named manifest.json too."""
    folder = tmp_path / "photos"
    (folder / "train").mkdir(parents=True)
    (folder / name).write_text('{"name": "web app", "recipe": {}}')
    (folder / "train/shard-00000.safetensors").write_text("a model")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(StoreMismatchError, match="not a store"):
        StoreSession.begin(folder, manifest({"train": 1}), mode)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_overwrite_removes_only_shards_that_embedx_wrote(tmp_path: Path) -> None:
    out = build_store(tmp_path / "store")
    foreign = {out / "train/shard-00007.safetensors": b"not one", out / "train/cat/shard-00008.safetensors": b""}
    save_file({"w": torch.ones(3)}, out / "train/cat/shard-00008.safetensors")
    foreign[out / "train/cat/shard-00008.safetensors"] = (out / "train/cat/shard-00008.safetensors").read_bytes()
    (out / "train/shard-00007.safetensors").write_bytes(b"not one")
    session = StoreSession.begin(out, manifest({"train": 8}, recipe="new"), "overwrite")
    commit(session, 0, 8)
    session.finish({})
    session.close()
    assert {path: path.read_bytes() for path in foreign} == foreign
    assert os.listdir(tmp_path) == ["store"]


def test_copies_of_shards_stores_below_and_empty_folders_are_left_alone(tmp_path: Path) -> None:
    out = build_store(tmp_path / "store", inputs=16, rejected=())
    (out / "empty").mkdir()
    shutil.copytree(out / "train", out / "copy")
    shutil.copytree(out / "train/cat", out / "train/copy")
    for below in (out / "below", out / "val"):
        build_store(below)
    foreign = {
        path.relative_to(out): path.read_bytes()
        for folder in ("copy", "train/copy", "below", "val")
        for path in (out / folder).rglob("*.safetensors")
    }
    assert len(foreign) == 6 + 2 * 4
    (out / "index/train-00001.parquet").unlink()
    session = StoreSession.begin(out, manifest({"train": 16}), "resume")
    assert not (out / "train/cat/shard-00001.safetensors").exists()
    commit(session, 8, 16)
    session.finish({})
    session.close()
    session = StoreSession.begin(out, manifest({"train": 8}, recipe="new"), "overwrite")
    commit(session, 0, 8)
    session.finish({})
    session.close()
    assert {path: (out / path).read_bytes() for path in foreign} == foreign
    assert (out / "empty").is_dir() and os.listdir(tmp_path) == ["store"]
    assert list(verify(out / "below")) == list(verify(out / "val")) == []


def test_a_store_whose_place_no_other_can_take_is_not_begun_to_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = build_store(tmp_path / "the store")

    def refused(cause: str) -> None:
        with pytest.raises(ConfigError, match=cause):
            StoreSession.begin(out, manifest({"train": 8}, recipe="new"), "overwrite")
        assert list(verify(out)) == [] and os.listdir(tmp_path) == ["the store"]

    monkeypatch.chdir(out / "index")
    refused("holds, the working directory")
    monkeypatch.chdir(tmp_path)
    bind = ["mount", "--bind", str(out), str(out)]
    if subprocess.run(bind, capture_output=True, check=False).returncode == 0:
        try:
            refused("the store is a mount point")
        finally:
            subprocess.run(["umount", str(out)], check=True)


@pytest.mark.parametrize("damage", ["shard gone", "shard cut off", "index table gone", "index table empty"])
def test_a_complete_store_that_was_damaged_is_unfinished_until_its_unit_is_written_again(
    tmp_path: Path, damage: str
) -> None:
    out = build_store(tmp_path / "store", inputs=16, rejected=())
    index, shard = out / "index/train-00001.parquet", out / "train/cat/shard-00001.safetensors"
    before = {path: path.read_bytes() for path in (index, shard)}
    damages: dict[str, Callable[[], None]] = {
        "shard gone": shard.unlink,
        "shard cut off": lambda: os.truncate(shard, 100),
        "index table gone": index.unlink,
        "index table empty": lambda: os.truncate(index, 0),
    }
    damages[damage]()
    session = StoreSession.begin(out, manifest({"train": 16}), "resume")
    assert session.is_committed(Unit("train", 0)) and not session.is_committed(Unit("train", 1))
    assert not Manifest.read(out).complete and not index.exists()
    assert len(Store.open(out).load("train")) == 8
    commit(session, 8, 16)
    session.finish({})
    session.close()
    assert list(verify(out)) == [] and {path: path.read_bytes() for path in before} == before


def test_a_whole_store_is_left_as_it_is(tmp_path: Path) -> None:
    out = build_store(tmp_path / "store")
    before = (out / "manifest.json").stat()
    session = StoreSession.begin(out, manifest({"train": 12}), "resume")
    assert session.is_finished
    session.close()
    after = (out / "manifest.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)  # it has been read, though


def test_what_a_kill_in_the_first_manifest_write_leaves_is_no_stranger_s(tmp_path: Path) -> None:
    (tmp_path / ".embedx.lock").touch()
    (tmp_path / ".manifest.json.embedx-tmp").write_text('{"rec')
    StoreSession.begin(tmp_path, manifest({"train": 8}), "resume").close()
    assert not list(layout.temporary_files(tmp_path))


def test_create_refuses_an_existing_store(tmp_path: Path) -> None:
    out = build_store(tmp_path / "store")
    with pytest.raises(StoreMismatchError, match="is a store already"):
        StoreSession.begin(out, manifest({"train": 12}), "create")


def test_overwrite_keeps_the_old_store_readable_until_the_new_one_is_whole(tmp_path: Path) -> None:
    out = build_store(tmp_path / "store", inputs=12)
    (out / "notes.txt").write_text("mine")
    (out / "train" / "notes.txt").write_text("mine too")
    old_rows = len(Store.open(out).load("train"))
    session = StoreSession.begin(out, manifest({"train": 8}, recipe="new"), "overwrite")
    commit(session, 0, 8)
    assert list(verify(out)) == [] and len(Store.open(out).load("train")) == old_rows
    session.finish({})
    session.close()
    assert Store.open(out).recipe == {"name": "new"} and list(verify(out)) == []
    assert len(Store.open(out).load("train")) == 8
    assert (out / "notes.txt").read_text() == "mine" and (out / "train/notes.txt").read_text() == "mine too"
    assert os.listdir(tmp_path) == ["store"]


def test_overwrite_through_a_link_replaces_what_it_leads_to(tmp_path: Path) -> None:
    out = build_store(tmp_path / "store", inputs=12)
    (tmp_path / "link").symlink_to("store")
    session = StoreSession.begin(tmp_path / "link", manifest({"train": 8}, recipe="new"), "overwrite")
    commit(session, 0, 8)
    session.finish({})
    session.close()
    assert sorted(os.listdir(tmp_path)) == ["link", "store"] and (tmp_path / "link").is_symlink()
    assert Store.open(out).recipe == {"name": "new"}


def test_an_interrupted_overwrite_is_taken_up_again(tmp_path: Path) -> None:
    out = build_store(tmp_path / "store", inputs=12)
    new = manifest({"train": 16}, recipe="new")
    session = StoreSession.begin(out, new, "overwrite")
    commit(session, 0, 8)
    session.close()
    session = StoreSession.begin(out, new, "overwrite")
    assert session.is_committed(Unit("train", 0))
    session.close()
    session = StoreSession.begin(out, manifest({"train": 16}, recipe="newer"), "overwrite")
    assert not session.is_committed(Unit("train", 0))
    session.close()
    assert list(verify(out)) == []


def test_the_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    out = tmp_path / "store"
    holder = (
        "import sys; from pathlib import Path; from tests.store.builders import manifest\n"
        "from embedx.store.writing.session import StoreSession\n"
        f"session = StoreSession.begin(Path({str(out)!r}), manifest({{'train': 1}}), 'resume')\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(StoreLockedError, match=f"process {process.pid} on"):
            StoreSession.begin(out, manifest({"train": 1}), "resume")
        process.kill()
    StoreSession.begin(out, manifest({"train": 1}), "resume").close()


def test_a_lock_file_that_its_holder_has_removed_protects_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file goes between opening and locking it, as where the holder's folder went with it."""
    flock = fcntl.flock
    removals = iter([tmp_path / ".embedx.lock"])

    def flock_late(descriptor: int, operation: int) -> None:
        for path in removals:
            path.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock_late)
    lock = StoreLock(tmp_path)
    with pytest.raises(StoreLockedError, match=f"process {os.getpid()} on"):
        StoreLock(tmp_path)
    lock.release()
    StoreLock(tmp_path).release()


def test_a_store_in_which_nothing_is_committed_is_begun_anew_whatever_its_recipe(tmp_path: Path) -> None:
    out = tmp_path / "store"
    StoreSession.begin(out, manifest({"train": 8}), "resume").close()
    session = StoreSession.begin(out, manifest({"train": 8}, recipe="other"), "resume")
    assert Manifest.read(out).recipe.to_json() == {"name": "other"}
    session.close()


def test_discard_takes_back_what_the_session_has_made_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    old = build_store(tmp_path / "old")
    before = sorted(tmp_path.rglob("*"))
    mode: Mode
    for out, mode in (("p/q/r", "resume"), ("empty", "resume"), ("old", "overwrite")):
        session = StoreSession.begin(tmp_path / out, manifest({"train": 8}, recipe="new"), mode)
        (session.root / "train/cat").mkdir(parents=True)
        (session.root / "train/cat/.shard-00000.safetensors.embedx-tmp").write_bytes(b"half")
        session.discard()
        session.close()
        assert sorted(tmp_path.rglob("*")) == before
    assert list(verify(old)) == []


def test_discard_leaves_a_store_that_was_begun_before(tmp_path: Path) -> None:
    StoreSession.begin(tmp_path, manifest({"train": 8}), "resume").close()
    session = StoreSession.begin(tmp_path, manifest({"train": 8}), "resume")
    session.discard()
    session.close()
    assert not Manifest.read(tmp_path).complete


def test_discard_takes_back_nothing_that_is_committed(tmp_path: Path) -> None:
    out = tmp_path / "store"
    session = StoreSession.begin(out, manifest({"train": 16}), "resume")
    commit(session, 0, 8)
    session.discard()
    session.close()
    assert Manifest.read(out).plan.splits["train"].inputs == 16


def test_a_changed_environment_is_told_and_kept_and_no_reason_to_refuse(tmp_path: Path) -> None:
    out = tmp_path / "store"
    for start, torch_version in enumerate(("2.14", "2.15", "2.15")):
        begun = dataclasses.replace(
            manifest({"train": 24}), environment=Environment.from_json({"torch": torch_version})
        )
        session = StoreSession.begin(out, begun, "resume")
        commit(session, 8 * start, 8 * start + 8)
        session.close()
    assert session.changes == [("torch", "2.14", "2.15")]
    stored = Manifest.read(out)
    assert stored.environment.packages == {"torch": "2.14"}
    assert [one.packages for one in stored.later_environments] == [{"torch": "2.15"}]


def test_an_exchange_by_two_renames_that_was_interrupted_between_them_is_taken_back(tmp_path: Path) -> None:
    out = build_store(tmp_path / "store")
    out.rename(tmp_path / ".store.embedx-old")
    session = StoreSession.begin(out, manifest({"train": 12}), "resume")
    assert session.is_finished
    session.close()
