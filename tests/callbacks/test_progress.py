"""Progress: a bar on a terminal, sparse plain lines elsewhere, nothing left over."""

import re
import threading
import time
from io import StringIO
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from embedx.callbacks.progress import ProgressBar
from embedx.engine import loop
from embedx.engine.callback import Callback
from embedx.heartbeat import Heartbeat
from tests.runs import written

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Echo(nn.Module):
    """Returns what it is given."""

    def forward(self, images: Any) -> Any:
        return images


class Failing(Callback):
    """Raises at the end of the first batch."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def on_test_batch_end(self, *args: Any) -> None:
        raise self.error


def batches(*rows: int) -> list[dict[str, Any]]:
    """Batches padded to 8."""
    return [{"images": torch.zeros(8, 1), "index": torch.arange(count)} for count in rows]


def console(terminal: bool) -> Console:
    return Console(file=StringIO(), force_terminal=terminal, width=100, _environ={"TERM": "xterm-256color"})


def assert_ended(threads: set[threading.Thread]) -> None:
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)


def run(console: Console, totals: dict[str, int], loaders: dict[str, Any], *others: Callback) -> str:
    with Heartbeat(console, seconds=0.2) as heartbeat:
        loop.run_test(Echo(), loaders, [ProgressBar(heartbeat, totals), *others])
    return written(console)


def without_times(text: str) -> list[str]:
    """The lines of a log, which must begin with the time of day."""
    matches = [re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (.*)", line) for line in text.splitlines()]
    return [match[1] for match in matches if match] if all(matches) else []


def test_elsewhere_than_on_a_terminal_the_lines_are_sparse_and_plain() -> None:
    text = run(console(False), {"train": 20, "val": 3}, {"train": batches(8, 8, 4), "val": batches(3)})
    assert without_times(text) == ["train: 20 of 20 inputs", "val: 3 of 3 inputs"]


class Slow(Callback):
    """Takes a while after each batch."""

    def on_test_batch_end(self, *args: Any) -> None:
        time.sleep(0.3)


def test_a_slow_run_gets_a_line_now_and_then_and_tells_its_rate_and_the_time_left() -> None:
    lines = without_times(run(console(False), {"train": 20}, {"train": batches(8, 8, 4)}, Slow()))
    often = [re.fullmatch(r"(train: \d+ of 20 inputs), \d+\.\d images/s, 0:00:0\d left", line) for line in lines]
    assert {match[1] for match in often if match} >= {f"train: {done} of 20 inputs" for done in (8, 16)}
    assert "train: 20 of 20 inputs" in lines


def test_on_a_terminal_a_bar_ends_at_the_total_and_the_cursor_comes_back() -> None:
    before = set(threading.enumerate())
    text = run(console(True), {"train": 20, "val": 3}, {"train": batches(8, 8, 4), "val": batches(3)})
    assert text.count(HIDE_CURSOR) == text.count(SHOW_CURSOR) == 3  # before, bars, and after them
    assert text.rindex(HIDE_CURSOR) < text.rindex(SHOW_CURSOR)
    *_, train, val, finishing = [line for line in re.split(r"[\r\n]+", ESCAPE.sub("", text)) if line.strip()]
    assert "finishing" in finishing
    assert re.match(r"train ━+ 100% 20/20 +[\d,]+ img/s 0:00:0\d 0:00:00 left", train) and len(train) == 100
    assert re.match(r"val +━+ 100% 3/3 +[\d,]+ img/s 0:00:0\d 0:00:00 left", val) and len(val) == 100
    assert_ended(set(threading.enumerate()) - before)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=repr)
def test_nothing_is_left_over_after_an_exception(error: BaseException) -> None:
    before = set(threading.enumerate())
    terminal = console(True)
    with pytest.raises(type(error)):
        run(terminal, {"train": 20}, {"train": batches(8)}, Failing(error))
    text = written(terminal)
    assert text.count(HIDE_CURSOR) == text.count(SHOW_CURSOR) == 2
    assert text.rindex(HIDE_CURSOR) < text.rindex(SHOW_CURSOR)
    assert "8/20" in ESCAPE.sub("", text)
    assert_ended(set(threading.enumerate()) - before)
    assert not getattr(terminal, "_live_stack", None)


@pytest.mark.parametrize("terminal", [True, False])
def test_teardown_without_start_is_fine_and_says_nothing(terminal: bool) -> None:
    there = console(terminal)
    callback = ProgressBar(Heartbeat(there), {"train": 20})
    callback.teardown()
    callback.teardown()
    assert ESCAPE.sub("", written(there)) == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_a_quiet_console_stays_silent(terminal: bool) -> None:
    silent = Console(file=StringIO(), force_terminal=terminal, quiet=True)
    assert run(silent, {"train": 4}, {"train": batches(4)}) == ""


@pytest.mark.parametrize(
    ("name", "terminal"), [("[red]val", True), ("[/x]", True), ("[red]val", False), ("[/x]", False), (":x", False)]
)
def test_a_name_is_shown_as_it_is(name: str, terminal: bool) -> None:
    text = run(console(terminal), {name: 4}, {name: batches(4)})
    assert f"{name}{'' if terminal else ':'} " in ESCAPE.sub("", text)


def test_a_line_stays_one_line_however_long_the_name() -> None:
    name = "a" * 120
    assert without_times(run(console(False), {name: 4}, {name: batches(4)})) == [f"{name}: 4 of 4 inputs"]
