"""How far long work is, in words."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from embedx.heartbeat import Heartbeat
from embedx.vectors.countdown import Countdown, duration_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99.4, "99 s"), (150, "2 min"), (5900, "98 min"), (6100, "1 h 42 min"), (7190, "2 h 0 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_a_log_has_the_estimate_and_the_share_that_is_done() -> None:
    stream = io.StringIO()
    heartbeat = Heartbeat(Console(file=stream, width=200))
    countdown = Countdown(heartbeat, "comparing 7 rows", 8)
    countdown.estimate(3)
    countdown.estimate(300)
    heartbeat.beat()
    countdown.add(2)
    heartbeat.beat()
    lines = [line[20:] for line in stream.getvalue().splitlines()]
    assert lines[:2] == ["comparing 7 rows: takes about 5 min", "comparing 7 rows: 0%"]
    assert lines[2].startswith("comparing 7 rows: 25%, ") and lines[2].endswith(" left")


def test_a_program_gets_the_share_as_json() -> None:
    stream = io.StringIO()
    heartbeat = Heartbeat(Console(file=stream, width=200), form="json")
    countdown = Countdown(heartbeat, "comparing", 4)
    countdown.add(1)
    countdown.estimate(300)
    heartbeat.beat()
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["share"] == 0.25


def test_a_terminal_has_a_bar() -> None:
    stream = io.StringIO()
    heartbeat = Heartbeat(Console(file=stream, width=120, force_terminal=True))
    countdown = Countdown(heartbeat, "comparing", 4)
    countdown.add(2)
    heartbeat.hide()
    assert f"comparing {'━' * 12}{'─' * 12} 50%, " in stream.getvalue()
