"""Inputs that the machine or the network does not give: a status of their own, and tried again by every run."""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import embedx
from embedx import ExtractConfig
from embedx.callbacks.rejected import RejectedInputs
from embedx.engine.state import new_state
from embedx.errors import InputError, TooManyUnavailableError
from embedx.run.extract import extract
from embedx.run.up_to_date import look_for_work
from embedx.store.reading.verify import verify
from embedx.system import remote
from embedx.values import Allowed, parse_allowed
from tests.failing_calls import failing
from tests.run.test_update import config, folder
from tests.runs import digests, run
from tests.servers import HttpServer

COUNT = 40
LATE = "/train/class-2/00035.ppm"
"""In the second unit of its split."""


def of(url: str, out: Path, **settings: Any) -> ExtractConfig:
    return dataclasses.replace(config(Path(), out), data=(url,), **settings)


def test_what_a_server_does_not_give_is_unavailable_until_it_gives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(remote, "_FIRST_DELAY", 0.001)
    server = HttpServer(folder(tmp_path / "images", COUNT))
    with server as url:
        extract(of(url, tmp_path / "undisturbed"))
        settings = of(url, tmp_path / "store", max_unavailable="5%")
        server.broken = {LATE: 503, "/val/class-0/00000.ppm": 0}
        for attempt in range(2):  # the second run tries them in vain again
            summary = extract(settings)
            assert (summary.rows, summary.rejected, summary.unavailable) == (COUNT - 2, 0, 2), attempt
            assert summary.to_json()["splits"]["train"]["unavailable"] == 1
            assert list(verify(tmp_path / "store")) == []
            table = embedx.open(tmp_path / "store").index("train")
            (row,) = [row for row in table.to_pylist() if row["status"] != "ok"]
            assert (row["status"], row["shard"]) == ("unavailable", None)
            assert row["reason"] == "can't be read: 503 Service Unavailable, at each of 4 attempts"
        server.broken = {"/val/class-0/00000.ppm": 404, LATE: 503}
        summary = extract(settings)
        assert (summary.rejected, summary.unavailable) == (1, 1)
        server.broken = {}
        assert extract(settings).rejected == 1  # a verdict stays
        assert extract(of(url, tmp_path / "store", retry_rejected=True)).rows == COUNT
        assert extract(settings).up_to_date
    assert digests(tmp_path / "store") == digests(tmp_path / "undisturbed")


def test_a_run_that_gets_too_few_inputs_fails_and_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(remote, "_FIRST_DELAY", 0.001)
    server = HttpServer(folder(tmp_path / "images", COUNT))
    with server as url:
        extract(of(url, tmp_path / "undisturbed"))
        settings = of(url, tmp_path / "store")
        server.broken = {LATE: 503}
        with pytest.raises(TooManyUnavailableError) as caught:
            extract(settings)
        assert caught.value.exit_code == 1
        for part in (LATE[7:], "503 Service Unavailable", "--max-unavailable 1% allows 0 of 40"):
            assert part in str(caught.value)
        server.broken = {}
        before = len(server.requests)
        extract(settings)
        assert len(server.requests) - before < COUNT  # what was there is kept
    assert digests(tmp_path / "store") == digests(tmp_path / "undisturbed")


def test_the_fast_path_leaves_unavailable_inputs_to_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(remote, "_FIRST_DELAY", 0.001)
    (tmp_path / "features").mkdir()
    for number in range(3):
        np.save(tmp_path / "features" / f"{number}.npy", np.full(4, number, np.float32))
    server = HttpServer(tmp_path / "features")
    with server as url:
        settings = ExtractConfig(backbone="none", data=(url,), out=tmp_path / "store", workers=0, max_unavailable="1")
        server.broken = {"/1.npy": 503}
        assert extract(settings).unavailable == 1
        assert look_for_work(settings)[0] is None
        server.broken = {}
        assert extract(settings).rows == 3
        found, _ = look_for_work(settings)
        assert found is not None and found.up_to_date


def test_a_disk_that_fails_a_read_costs_no_row_for_good(tmp_path: Path) -> None:
    """The command, with workers, on a file whose reads fail as those of a network's disk that is away."""
    images = folder(tmp_path / "images", 12)
    extract(config(images, tmp_path / "undisturbed"))
    settings = config(images, tmp_path / "store")
    flags = [
        f"--{name.replace('_', '-')}={settings.to_json()[name]}" for name in ("image_size", "batch_size", "group_key")
    ]
    flags += [f"--shard-size={settings.shard_size}", "--mean=0.5", "--std=0.5", "--backbone=torch.nn:Flatten", "--json"]
    fault = failing(tmp_path, "read", "00007.ppm", errno.ESTALE)
    done = run("extract", *flags, "-j1", f"--out={settings.out}", f"--data={images}", "--max-unavailable=1", env=fault)
    assert done.returncode == 3, done.stderr
    assert "11 rows, 0 rejected, 1 unavailable" in done.stderr and "1 input unavailable" in done.stderr
    assert json.loads(done.stdout)["unavailable"] == 1
    assert extract(settings).rows == 12
    assert digests(settings.out) == digests(tmp_path / "undisturbed")


def test_the_share_that_is_allowed() -> None:
    shares = [("1%", 99, 0), ("1%", 100, 1), ("0.5%", 1000, 5), ("100%", 7, 7), ("20", 7, 20), ("0", 7, 0)]
    for given, inputs, allowed in shares:
        assert Allowed(parse_allowed(given), inputs).number == allowed
    for wrong in ("101%", "-1", "1.5", "half", "%", ""):
        with pytest.raises(ValueError, match="neither a number of inputs nor a percentage"):
            parse_allowed(wrong)


def test_with_on_error_fail_the_first_unavailable_input_ends_the_run() -> None:
    batch = {"keys": ["a", "b"], "reasons": [None, "why"], "unavailable": [False, True]}
    with pytest.raises(InputError, match="b is unavailable: why"):
        RejectedInputs("fail").on_test_batch_end(new_state(), nn.Module(), {}, batch, 0)
