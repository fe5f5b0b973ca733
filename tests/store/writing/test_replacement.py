"""The exchange of two stores, killed at each of its steps: one of the two stands, and nothing stays beside it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from embedx.names import PREDECESSOR
from embedx.store.format.manifest import Manifest
from embedx.store.reading.verify import verify
from embedx.store.writing import replacement
from embedx.store.writing.session import StoreSession
from tests.store.builders import build_store, commit, manifest, unit_batch

OLD, NEW = (manifest({"train": 8}, group_key=None, recipe=recipe) for recipe in ("old", "new"))
STEPS = frozenset({"open", "os.rename", "os.remove", "os.rmdir", "ctypes.dlsym"})
"""The audit events of calls that change files or sync folders, and of looking up the one that exchanges two names."""


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with somebody's notes in it, and beside it another one that has only to take its place."""
    root = tmp_path_factory.mktemp("begun")
    out = build_store(root / "store", 8, group_key=None, recipe="old")
    (out / "train/notes.txt").write_text("mine")
    session = StoreSession.begin(out, NEW, "overwrite")
    commit(session, unit_batch(0, 8))
    session.close()
    return root


def finish(out: Path, killed_at: int) -> bool:
    """Finishes the replacement in a process that is killed before so many steps of it; tells whether it was."""
    if (child := os.fork()) == 0:
        try:
            finish_until(out, killed_at)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def finish_until(out: Path, killed_at: int) -> None:
    steps = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal steps
        if event in STEPS and (event != "open" or arguments[2] & (os.O_DIRECTORY | os.O_CREAT)):
            if steps == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
            steps += 1

    def take_place(new: Path, out: Path) -> None:
        sys.addaudithook(count)
        original(new, out)

    original = replacement.take_place
    replacement.take_place = take_place
    session = StoreSession.begin(out, NEW, "overwrite")
    session.finish({})
    session.close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("in_one_step", [True, False], ids=["exchange", "two renames"])
def test_a_kill_at_any_step_leaves_one_store_and_the_next_run_leaves_nothing_else(
    tmp_path: Path, begun: Path, in_one_step: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_one_step:
        monkeypatch.setattr(replacement, "exchange", lambda one, other: False)
    found = []
    for step in range(200):
        root = tmp_path / str(step)
        shutil.copytree(begun, root)
        out = root / "store"
        if not finish(out, step):
            break
        is_new = out.exists() and Manifest.read(out).recipe == NEW.recipe
        found.append(is_new)
        session = StoreSession.begin(out, NEW if is_new else OLD, "resume")  # the plain rerun
        session.close()
        assert session.is_finished and not (out / PREDECESSOR).exists()
        assert (out / "train/notes.txt").read_text() == "mine"
        if not is_new:  # the same command goes on
            assert list(verify(out)) == [] and not finish(out, -1)
        assert os.listdir(root) == ["store"] and list(verify(out)) == []
        assert Manifest.read(out).recipe == NEW.recipe and (out / "train/notes.txt").read_text() == "mine"
        shutil.rmtree(root)
    assert found == sorted(found) and False in found and found.count(True) > 5
