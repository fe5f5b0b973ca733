"""The heartbeat, in real time and with a short period."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import re
import threading
import time
from typing import Any

import pytest
from rich.console import Console

from embedx.errors import ConfigError, Interrupted
from embedx.heartbeat import SILENT, Heartbeat
from tests.runs import written


def console(**options: Any) -> Console:
    return Console(file=io.StringIO(), width=60, **options)


def lines(console: Console) -> list[str]:
    return [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", line) for line in written(console).splitlines()]


def test_what_takes_long_is_told_again_and_again_and_what_does_not_is_not() -> None:
    log = console()
    with Heartbeat(log, seconds=0.3) as heartbeat:
        heartbeat.say("listing [the] inputs")
        time.sleep(0.7)
        heartbeat.say("soon done")
        heartbeat.say("reading the weights")
        time.sleep(0.3)
    assert lines(log) == [
        "listing [the] inputs: 0 s so far",
        "listing [the] inputs: 1 s so far",
        "reading the weights: 0 s so far",
    ]


def test_a_line_that_is_told_puts_the_next_one_off() -> None:
    log = console()
    with Heartbeat(log, seconds=0.5) as heartbeat:
        for _ in range(3):
            time.sleep(0.3)
            heartbeat.tell("a line")
    assert lines(log) == ["a line"] * 3


@pytest.mark.parametrize("options", [{"quiet": True}, {"quiet": True, "force_terminal": True}])
def test_quiet_is_quiet(options: dict[str, bool]) -> None:
    there = console(**options)
    with Heartbeat(there, seconds=0.01) as heartbeat:
        heartbeat.say("something")
        time.sleep(0.05)
    assert lines(there) == []


def test_on_a_terminal_it_is_one_line_that_goes_away() -> None:
    terminal = console(force_terminal=True, _environ={"TERM": "xterm-256color"})
    before = set(threading.enumerate())
    with Heartbeat(terminal) as heartbeat:
        heartbeat.say("listing [the] inputs")
        time.sleep(0.2)
        heartbeat.hide()
        shown = written(terminal)
        time.sleep(0.2)
        assert written(terminal) == shown
    assert "listing [the] inputs" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor is back
    assert set(threading.enumerate()) == before
    assert SILENT.console.quiet


@pytest.mark.parametrize(
    ("error", "code"), [(None, 0), (ConfigError("no"), 2), (Interrupted(15), 143), (KeyError(), 1)]
)
def test_a_log_tells_when_a_run_begins_and_how_it_ends(error: BaseException | None, code: int) -> None:
    log = console()
    with contextlib.suppress(BaseException), Heartbeat(log).frame("embedx 1.0 extract --out store"):
        if error:
            raise error
    first, last = written(log).splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d embedx 1.0 extract --out store: begins", first)
    assert last.endswith(f" embedx 1.0 extract --out store: ends with exit code {code}")
    terminal = console(force_terminal=True)
    with Heartbeat(terminal).frame("embedx"):
        assert lines(terminal) == []


def test_for_programs_each_line_is_an_object() -> None:
    log = console()
    with Heartbeat(log, seconds=0.2, form="json").frame("embedx 1.0 extract"), Heartbeat(log, 0.2, form="json") as beat:
        beat.say("listing the inputs")
        time.sleep(0.5)
        beat.follow(str, lambda: {"state": "embedding", "done": 3})
        beat.beat()
        time.sleep(0.3)
    events = [json.loads(line) for line in lines(log)]
    assert [each["event"] for each in events] == ["begin", *["progress"] * (len(events) - 2), "end"]
    assert events[0]["title"] == "embedx 1.0 extract" and events[-1]["exit_code"] == 0
    assert events[1]["state"] == "listing the inputs" and 0 < events[1]["seconds"] < 0.5
    assert events[-2]["done"] == events[-3]["done"] == 3
    times = [datetime.datetime.fromisoformat(each["time"]) for each in events]
    assert times == sorted(times) and times[0].utcoffset() == datetime.timedelta(0)


def test_a_detail_is_told_only_where_it_is_wanted() -> None:
    log = console()
    Heartbeat(log).detail("a")
    Heartbeat(log, verbose=True).detail("b")
    assert lines(log) == ["b"]


def test_plain_lines_on_a_terminal() -> None:
    terminal = console(force_terminal=True, _environ={"TERM": "xterm-256color"})
    with Heartbeat(terminal, seconds=0.1, form="plain") as heartbeat:
        heartbeat.say("working")
        time.sleep(0.15)
    assert lines(terminal) == ["working: 0 s so far"]
