"""`embedx.extract` is the command: the same bytes, checks and messages, and a process that stays as it was."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import embedx
from embedx import sample
from embedx.cli.app import run
from embedx.store.reading.verify import verify
from tests.runs import digests

SETTINGS: dict[str, Any] = {"backbone": "shufflenet_v2_x0_5", "weights": "sample", "image_size": 32}
FLAGS = ["--backbone", "shufflenet_v2_x0_5", "--weights", "sample", "--image-size", "32"]
STARS = sample.IMAGES / "val" / "star"


def loaders() -> list[psutil.Process]:
    """The processes of runs that this process has started and that live; the fork server stays for the next run."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if child.is_running() and child.name().startswith("embedx-")]


def test_it_writes_what_the_command_writes_and_then_has_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    store = embedx.extract({"val": STARS}, out=tmp_path / "python", workers=0, layer="conv5", **SETTINGS)
    assert "val: 10 of 10 inputs" in capfd.readouterr().err
    assert store.complete and len(store) == 10 and list(verify(store.path)) == []
    arguments = ["extract", *FLAGS, "--data", f"val={STARS}", "--out", str(tmp_path / "command"), "--workers", "0"]
    monkeypatch.setattr(sys, "argv", ["embedx", *arguments, "--layer", "conv5"])
    assert run() == 0
    assert digests(tmp_path / "python") == digests(tmp_path / "command")
    capfd.readouterr()
    before = digests(tmp_path / "python")
    again = embedx.extract(
        {"val": STARS}, out=tmp_path / "python", workers=0, layer="conv5", progress=False, **SETTINGS
    )
    assert (digests(again.path), *capfd.readouterr()) == (before, "", "")


def test_the_process_stays_as_it_was(tmp_path: Path) -> None:
    def settings() -> tuple[Any, ...]:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        return handlers, torch.get_num_threads(), gc.isenabled(), os.getcwd()

    before, frozen = settings(), gc.get_freeze_count()
    embedx.extract(STARS, out=tmp_path / "store", workers=0, threads=1, progress=False, **SETTINGS)
    assert settings() == before and gc.get_freeze_count() <= frozen


def test_faults_are_the_command_s_and_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(embedx.ConfigError) as raised:
        embedx.extract(tmp_path / "nowhere", backbone="resnet19", out=tmp_path / "store", workers=-1, progress=False)
    assert [word for word in ("--workers is -1", "nowhere", "resnet19") if word not in str(raised.value)] == []


def test_rejected_inputs_raise_and_leave_a_complete_store(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes((STARS / "star_00.jpg").read_bytes())
    (folder / "b.jpg").write_bytes(b"no image")
    settings = {**SETTINGS, "out": tmp_path / "store", "workers": 0, "progress": False}
    with pytest.raises(embedx.TooManyRejectedError, match="1 input rejected, and --max-errors allows 0"):
        embedx.extract(folder, **settings)
    store = embedx.open(tmp_path / "store")
    assert store.complete and len(store) == 1
    assert len(embedx.extract(folder, max_errors=1, **settings)) == 1


def test_ctrl_c_raises_keyboard_interrupt_ends_all_processes_and_the_same_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    settings: dict[str, Any] = {"backbone": "tests.run.stopping:Slow", "image_size": 8, "mean": 0.5, "std": 0.5}
    settings |= {"out": tmp_path / "store", "workers": 1, "progress": False, "batch_size": 2}
    log = tmp_path / "batches"
    log.touch()
    monkeypatch.setenv("SLOW_LOG", str(log))
    monkeypatch.setenv("SLOW_SECONDS", "0.1")

    def interrupt() -> None:
        """When three of the forty batches are through."""
        while log.stat().st_size < 3:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt) as raised:  # whose traceback holds all that the run made
        embedx.extract(sample.IMAGES / "val", **settings)
    thread.join()
    assert not embedx.open(tmp_path / "store").complete and raised.value.__traceback__ is not None
    psutil.wait_procs(loaders(), timeout=10)
    assert loaders() == []
    monkeypatch.setenv("SLOW_SECONDS", "0")
    assert len(embedx.extract(sample.IMAGES / "val", **settings)) == 80
