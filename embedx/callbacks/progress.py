"""Shows progress on stderr: a bar on a terminal, sparse plain lines elsewhere, as in a cron job's log."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from torch import nn

from embedx.engine.callback import Callback
from embedx.engine.state import Batch, Outputs, TrainerState
from embedx.heartbeat import Heartbeat
from embedx.terminal import one_line


class ProgressBar(Callback):
    """Shows the progress of each dataloader.

    Args:
        heartbeat: The heartbeat that writes to stderr.
        totals: The number of inputs of each dataloader, by name.
        lost: The function that gives the numbers of inputs without a row so far, by status.
    """

    def __init__(
        self, heartbeat: Heartbeat, totals: dict[str, int], lost: Callable[[], Mapping[str, int]] = dict
    ) -> None:
        super().__init__()
        self.totals = totals
        self._heartbeat = heartbeat
        self._display = _Bars(heartbeat, totals) if heartbeat.is_bar else _Lines(heartbeat, totals, lost)

    def start(self) -> None:
        """Starts the display."""
        self._display.start()

    def advance(self, name: str, count: int) -> None:
        """Adds so many inputs of a dataloader."""
        self._display.advance(name, count)

    def finish(self) -> None:
        """Stops the display; what follows may still have much to do."""
        if self._heartbeat.form == "json":
            self._heartbeat.beat()
        self._display.stop()
        self._heartbeat.say("finishing")

    def on_test_epoch_start(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Starts the display."""
        self.start()

    def on_test_batch_end(
        self,
        trainer_state: TrainerState,
        model: nn.Module,
        outputs: Outputs,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds the batch's inputs."""
        self.advance(list(self.totals)[dataloader_idx], len(batch["index"]))

    def on_test_epoch_end(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Stops the display."""
        self.finish()

    def teardown(self) -> None:
        """Stops the display after an error as well, so that the terminal is left as it was."""
        self._display.stop()


class _RateColumn(ProgressColumn):
    """The rate over the last minute; the first batch, which includes the start of the workers, does not count."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed or (task.completed / task.elapsed if task.elapsed else 0.0)
        return Text(f"{speed:,.0f} img/s", justify="right")


class _Bars:
    def __init__(self, heartbeat: Heartbeat, totals: dict[str, int]) -> None:
        self._heartbeat = heartbeat
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=heartbeat.console,
            expand=True,
            speed_estimate_period=60.0,
        )
        self._tasks = {
            name: self._progress.add_task(one_line(name), total=total, start=False) for name, total in totals.items()
        }

    def start(self) -> None:
        self._heartbeat.hide()
        self._progress.start()

    def advance(self, name: str, count: int) -> None:
        self._progress.start_task(self._tasks[name])
        self._progress.advance(self._tasks[name], count)

    def stop(self) -> None:
        self._progress.stop()


class _Lines:
    def __init__(self, heartbeat: Heartbeat, totals: dict[str, int], lost: Callable[[], Mapping[str, int]]) -> None:
        self._heartbeat = heartbeat
        self._totals = totals
        self._done = dict.fromkeys(totals, 0)
        self._current = next(iter(totals), None)
        self._lost = lost
        self._started = 0.0

    def start(self) -> None:
        self._started = time.monotonic()
        self._heartbeat.follow(self._line, self._facts)

    def advance(self, name: str, count: int) -> None:
        self._current = name
        self._done[name] += count
        if self._done[name] == self._totals[name] and self._heartbeat.form != "json":
            self._heartbeat.tell(f"{name}: {self._done[name]} of {self._totals[name]} inputs")

    def stop(self) -> None:
        pass

    def _facts(self) -> dict[str, Any]:
        done, total, rate = self._pace()
        return {
            "state": "embedding",
            "split": self._current,
            "done": done,
            "total": total,
            "rate": round(rate, 2),
            "eta": round((total - done) / rate, 1) if rate else None,
            **self._lost(),
        }

    def _pace(self) -> tuple[int, int, float]:
        """Returns the inputs that are done, those of all splits, and the inputs per second."""
        done = sum(self._done.values())
        return done, sum(self._totals.values()), done / max(time.monotonic() - self._started, 1e-9)

    def _line(self) -> str:
        name = self._current
        if name is None:
            return "moving rows"
        done, total, rate = self._pace()
        line = f"{name}: {self._done[name]} of {self._totals[name]} inputs, {rate:.1f} images/s"
        if done:
            line += f", {datetime.timedelta(seconds=round((total - done) / rate))} left"
        return line
