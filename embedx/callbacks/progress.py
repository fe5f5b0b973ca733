"""Shows progress on stderr: a bar on a terminal, sparse plain lines elsewhere, as in a cron job's log."""

from __future__ import annotations

import time

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from embedx.engine.callback import Callback
from embedx.engine.state import Batch, Outputs, TrainerState
from embedx.heartbeat import Heartbeat


class ProgressBar(Callback):
    """Shows the progress of each dataloader.

    Args:
        heartbeat: The heartbeat that writes to stderr.
        totals: The number of inputs of each dataloader, by name.
    """

    def __init__(self, heartbeat: Heartbeat, totals: dict[str, int]) -> None:
        super().__init__()
        self.totals = totals
        self._heartbeat = heartbeat
        self._display = _Bars(heartbeat, totals) if heartbeat.console.is_terminal else _Lines(heartbeat, totals)

    def on_test_epoch_start(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Starts the display."""
        self._display.start()

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
        self._display.advance(list(self.totals)[dataloader_idx], len(batch["index"]))

    def on_test_epoch_end(self, trainer_state: TrainerState, model: nn.Module) -> None:
        """Stops the display; callbacks that follow may still have much to do."""
        self._display.stop()
        self._heartbeat.say("finishing")

    def teardown(self) -> None:
        """Stops the display after an error as well, so that the terminal is left as it was."""
        self._display.stop()


class _Bars:
    def __init__(self, heartbeat: Heartbeat, totals: dict[str, int]) -> None:
        self._heartbeat = heartbeat
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:>6.0f} img/s"),
            TimeRemainingColumn(),
            console=heartbeat.console,
        )
        self._tasks = {
            name: self._progress.add_task(name, total=total, rate=0.0, start=False) for name, total in totals.items()
        }
        self._begun: dict[str, tuple[float, int]] = {}

    def start(self) -> None:
        self._heartbeat.hide()
        self._progress.start()

    def advance(self, name: str, count: int) -> None:
        task = self._tasks[name]
        now = time.perf_counter()
        if name not in self._begun:
            # The rate counts from the end of the first batch, since that batch includes the start of the workers.
            self._begun[name] = now, count
            self._progress.start_task(task)
        self._progress.advance(task, count)
        begun, first = self._begun[name]
        rate = (self._progress.tasks[task].completed - first) / (now - begun) if now > begun else 0.0
        self._progress.update(task, rate=rate)

    def stop(self) -> None:
        self._progress.stop()


class _Lines:
    def __init__(self, heartbeat: Heartbeat, totals: dict[str, int]) -> None:
        self._heartbeat = heartbeat
        self._totals = totals
        self._done = dict.fromkeys(totals, 0)
        self._current = next(iter(totals), None)
        self._started = 0.0

    def start(self) -> None:
        self._started = time.monotonic()
        self._heartbeat.follow(self._line)

    def advance(self, name: str, count: int) -> None:
        self._current = name
        self._done[name] += count
        if self._done[name] == self._totals[name]:
            self._heartbeat.tell(f"{name}: {self._done[name]} of {self._totals[name]} inputs")

    def stop(self) -> None:
        pass

    def _line(self) -> str:
        name = self._current
        if name is None:
            return "moving rows"
        rate = sum(self._done.values()) / (time.monotonic() - self._started)
        return f"{name}: {self._done[name]} of {self._totals[name]} inputs, {rate:.1f} images/s"
