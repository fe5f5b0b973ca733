from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

from embedx.data.loading.loaders import SplitLoader
from embedx.data.loading.turns import Turns
from embedx.data.plan import build_plan
from embedx.system import machine
from tests.data.loading.test_loaders import DECODER
from tests.folders import folder_source


@pytest.mark.parametrize("seconds", [0, pytest.param(9, marks=pytest.mark.soak)])
def test_images_beyond_a_workers_share_wait_for_their_turn_which_is_not_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """The turn is taken here for longer than an input may take."""
    for number in range(6):
        Image.new("RGB", (1200, 1000), (40 * number, 9, 9)).save(tmp_path / f"{number}.png")
    split = build_plan({"all": folder_source(tmp_path)}, None).splits["all"]
    alone = SplitLoader(split, [range(6)], DECODER, batch_size=1, workers=0)
    expected = torch.cat([batch["images"] for batch in alone])
    turns = Turns(1_000_000, str(tmp_path / "turn"))
    monkeypatch.setattr(Turns, "of", lambda workers: turns)
    loader = SplitLoader(split, [range(6)], DECODER, batch_size=1, workers=2, timeout=5)
    with turns.take(1):
        loader.start()
        time.sleep(seconds)
    batches = list(loader)
    assert [reason for batch in batches for reason in batch["reasons"]] == [None] * 6
    assert torch.equal(torch.cat([batch["images"] for batch in batches]), expected)


def test_an_image_that_needs_more_than_there_is_raises_a_memory_error(tmp_path: Path) -> None:
    turns = Turns.of(3)
    assert 0 < turns.share <= machine.available_memory() / 3
    with pytest.raises(MemoryError), turns.take(2**60):
        pass
    with turns.take(1), pytest.raises(BlockingIOError), open(str(turns.lock)) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert Turns.of(0).lock is None


def test_available_memory_is_the_machines_or_what_a_container_leaves(tmp_path: Path) -> None:
    there = psutil.virtual_memory()
    assert 0 < machine.available_memory() <= max(there.available, there.free) * 1.3
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 200\n")
    assert machine._room_of_group(tmp_path) == 500
    (tmp_path / "memory.max").write_text("max\n")
    with pytest.raises(ValueError, match="max"):
        machine._room_of_group(tmp_path)
    os.remove(tmp_path / "memory.max")
    (tmp_path / "memory.limit_in_bytes").write_text("900\n")
    (tmp_path / "memory.usage_in_bytes").write_text("700\n")
    (tmp_path / "memory.stat").write_text("inactive_file 9\ntotal_inactive_file 100\n")
    assert machine._room_of_group(tmp_path) == 300
