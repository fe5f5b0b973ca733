"""One member settles what is open; the others wait, and another one takes its place if it is gone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedx.config import ExtractConfig
from embedx.distribute.messages import Settled
from embedx.distribute.settling import Settling
from embedx.distribute.timings import MemberTimings
from embedx.models.runtimes import trial
from embedx.run.job import Job
from embedx.run.prepare import prepare
from embedx.store.format.manifest import Manifest
from embedx.store.writing.session import StoreSession

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    config = ExtractConfig(backbone="squeezenet1_1", weights="random", image_size=64, out=tmp_path / "store")
    return prepare(config)


@pytest.fixture
def session(job: Job) -> Iterator[StoreSession]:
    begun = StoreSession.begin(job.config.out, job.manifest, "resume")
    yield begun
    begun.close()


def settling_of(job: Job, session: StoreSession) -> tuple[Settling, list[str], MemberTimings]:
    told: list[str] = []
    timings = MemberTimings()
    tell = Settling(job, session, timings, lambda name: told.append(f"{name} tries"), lambda name: told.append(name))
    return tell, told, timings


def test_the_first_member_settles_and_all_begin(job: Job, session: StoreSession) -> None:
    settling, told, timings = settling_of(dataclasses.replace(job, may_take_bf16=True), session)
    for name in ("first", "second", "third"):
        settling.add(name)
    settling.lose("third")
    assert told == ["first tries"]
    settling.lose("first")
    settling.add("fourth")
    assert told == ["first tries", "second tries"]
    found = Settled("bf16", "openvino", job.environment, {"trial_smallest_cosine": 0.9999})
    settling.on_settled("second", found, 0.0)
    settling.add("late")
    assert told[2:] == ["second", "fourth", "late"]
    stated = Manifest.read(job.config.out).recipe
    assert (stated.precision, stated.runtime) == ("bf16", "openvino")
    assert session.manifest.fingerprint != job.manifest.fingerprint
    assert timings.further == {"trial_smallest_cosine": 0.9999}


def test_a_member_that_is_stopped_while_it_tries_keeps_no_other_waiting(
    job: Job, session: StoreSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    settling, told, _ = settling_of(dataclasses.replace(job, may_take_bf16=True), session)
    settling.add("stopped")
    settling.add("other")
    settling.look()
    assert told == ["stopped tries"]
    monkeypatch.setattr("embedx.distribute.settling._PATIENCE_SECONDS", 0.0)
    settling.look()
    assert told == ["stopped tries", "other tries"]
    settling.on_settled("other", Settled("fp32", "eager", job.environment, {}), 0.0)
    settling.on_settled("stopped", Settled("bf16", "openvino", job.environment, {}), 0.0)  # awake again
    assert told[2:] == ["other", "stopped"]
    assert Manifest.read(job.config.out).recipe.precision == "fp32"


def test_members_begin_at_once_where_nothing_is_open_or_the_run_is_short(job: Job, session: StoreSession) -> None:
    assert job.rivals and job.plan.inputs < trial.SHORTEST_RUN * job.batch_size
    settling, told, _ = settling_of(job, session)
    settling.add("first")
    assert told == ["first"]
    settling, told, _ = settling_of(dataclasses.replace(job, batch_size=4), session)
    settling.add("first")
    assert told == ["first tries"]
