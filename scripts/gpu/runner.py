"""Runs steps that do not stop one another, each with its limit of time, and writes down what each has found."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

_GRACE = 5.0
"""The seconds that a process has to end by itself once its time is over."""


class CheckFailedError(Exception):
    """A step has found a fault; the message says which."""


class OutOfTimeError(Exception):
    """The time of all steps was over in the midst of one."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of the check."""

    name: str
    """Its name, as the results have it."""
    run: Callable[[dict[str, Any]], None]
    """Fills the dict with what it finds, and raises an error if that is a fault."""
    limit: float
    """The seconds after which its commands are killed."""
    least: float = 10.0
    """The seconds that have to be left for it to begin."""
    obstacle: Callable[[], str] = str
    """Returns the reason why it can't run, or an empty text."""
    always: bool = False
    """True if other steps need it, so that a choice of steps does not leave it out."""


class Finished(NamedTuple):
    """A command that has ended."""

    code: int
    """Its exit code, negative if a signal ended it."""
    stdout: str
    """All that it wrote to stdout."""
    stderr: str
    """All that it wrote to stderr."""
    seconds: float
    """Its duration."""

    @property
    def json(self) -> Any:
        """The JSON of the last line of stdout."""
        return json.loads(self.stdout.splitlines()[-1])


class Runner:
    """Runs steps and commands, and keeps `result.json` and `log.txt`.

    Args:
        out: The folder of both files; it is made if missing.
        work: A folder for files that nobody needs afterwards.
        root: The folder in which commands are run.
        seconds: The duration of all steps together, beyond which none begins and no command goes on.
    """

    def __init__(self, out: Path, work: Path, root: Path, seconds: float) -> None:
        self.work, self.root = work, root
        self.environment = dict(os.environ)
        self.result: dict[str, Any] = {"finished": False, "seconds": 0.0, "steps": {}}
        self._begin = time.monotonic()
        self._end = self._limit = self._begin + seconds
        self._commands: list[Started] = []
        self._lock = threading.RLock()
        out.mkdir(parents=True, exist_ok=True)
        self._path = out / "result.json"
        self._log = (out / "log.txt").open("w", buffering=1)

    def close(self) -> None:
        """Closes the log."""
        self._log.close()

    @property
    def left(self) -> float:
        """The seconds that are left for all steps."""
        return self._end - time.monotonic()

    def run(self, steps: Sequence[Step]) -> bool:
        """Runs the steps in order; returns whether none has failed."""
        self.result["steps"] = {step.name: {"status": "not reached"} for step in steps}
        self._write()
        try:
            for step in steps:
                self._run_step(step, self.result["steps"][step.name])
                self._write()
            self.result["finished"] = True
        finally:
            self._write()
        return not any(entry["status"] == "FAILED" for entry in self.result["steps"].values())

    def _run_step(self, step: Step, entry: dict[str, Any]) -> None:
        if self.left < step.least:
            self._settle(step, entry, "no time", f"{self.left:.0f} s are left, and it takes {step.least:.0f}")
            return
        begin = time.monotonic()
        self._limit = min(self._end, begin + step.limit)
        self._say(f"== {step.name}", on_screen=False)
        found: dict[str, Any] = {}
        entry |= {"status": "interrupted", "found": found}
        try:
            if obstacle := step.obstacle():
                self._settle(step, entry, "skipped", obstacle)
                return
            step.run(found)
            status, why = "ok", ""
        except CheckFailedError as error:
            status, why = "FAILED", str(error)
        except OutOfTimeError as error:
            status, why = "no time", str(error)
        except Exception as error:  # noqa: BLE001  (whatever it is, the other steps can tell more)
            status, why = "FAILED", f"{type(error).__name__}: {error}"
            self._say(traceback.format_exc(), on_screen=False)
        entry["seconds"] = round(time.monotonic() - begin, 1)
        self._settle(step, entry, status, why)

    def _settle(self, step: Step, entry: dict[str, Any], status: str, why: str) -> None:
        entry["status"] = status
        if why:
            entry["why"] = why
        told = f": {' '.join(why.split()):.300}" if why else ""
        self._say(f"{status:8}{entry.get('seconds', 0.0):6.1f} s  {step.name}{told}")

    def call(self, *command: str | Path, codes: Sequence[int] = (0,)) -> Finished:
        """Runs a command until its end or that of the step's time.

        Raises:
            CheckFailedError: If its exit code is none of these, or the step's time is over.
            OutOfTimeError: If the time of all steps is over.
        """
        started = self.start(*command)
        try:
            started.process.wait(max(1.0, self._limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            finished = started.stop()
            told = f"{shlex.join(started.words)}: not done after {finished.seconds:.0f} s: {finished.stderr[-300:]}"
            raise (CheckFailedError if self.left > 0 else OutOfTimeError)(told) from None
        except BaseException:
            started.stop()
            raise
        finished = started.collect()
        if finished.code not in codes:
            told = (finished.stderr.strip() or finished.stdout.strip())[-600:]
            raise CheckFailedError(f"{shlex.join(started.words)}: exit code {finished.code}: {told}")
        return finished

    def start(self, *command: str | Path) -> Started:
        """Starts a command in a process group of its own."""
        words = [str(word) for word in command]
        with self._lock:
            number = len(self._commands)
            self._say(f"[{number}] $ {shlex.join(words)}", on_screen=False)
            stem = self.work / f"command-{number}"
            say = partial(self._say, on_screen=False)
            started = Started(words, stem, self.root, self.environment, say)
            self._commands.append(started)
        return started

    def found(self, step: str) -> dict[str, Any]:
        """Returns what a step has found; nothing if it was not run."""
        found: dict[str, Any] = self.result["steps"].get(step, {}).get("found", {})
        return found

    def stop_at_signals(self) -> None:
        """Has SIGINT and SIGTERM end the commands under way, and then the steps."""

        def stop(number: int, frame: object) -> None:
            for command in self._commands:
                command.send(signal.SIGTERM)
            raise SystemExit(128 + number)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)

    def _say(self, text: str, *, on_screen: bool = True) -> None:
        with self._lock:
            self._log.write(f"[{time.monotonic() - self._begin:6.1f}] {text.rstrip()}\n")
        if on_screen:
            print(text, flush=True)

    def _write(self) -> None:
        self.result["seconds"] = round(time.monotonic() - self._begin, 1)
        temporary = self._path.with_suffix(".part")
        temporary.write_text(json.dumps(self.result, indent=1) + "\n")
        temporary.replace(self._path)


class Started:
    """A command that was started; its output goes to files, which no process that outlives it can hold up.

    Args:
        words: The command and its arguments.
        stem: The path of these files, but for their suffixes.
        folder: The folder in which it is run.
        environment: Its environment variables.
        say: The function that logs a text.
    """

    def __init__(
        self, words: Sequence[str], stem: Path, folder: Path, environment: Mapping[str, str], say: Callable[..., None]
    ) -> None:
        self.words = words
        self._paths = stem.with_suffix(".out"), stem.with_suffix(".err")
        self._say = say
        self._begin = time.monotonic()
        with self._paths[0].open("wb") as out, self._paths[1].open("wb") as err:
            self.process = subprocess.Popen(
                words,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def stop(self) -> Finished:
        """Ends the command and all processes of its group, and returns what it has written."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self.send(number, is_over=True)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_GRACE)
        return self.collect()

    def send(self, number: int, *, is_over: bool = False) -> None:
        """Sends a signal to its process group, unless the command has ended; if `is_over`, to those that are left."""
        if self.process.returncode is None or is_over:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def kill(self) -> float:
        """Kills the command alone, by SIGKILL; returns the seconds until its whole process group had ended."""
        self.process.kill()
        self.process.wait()
        begin = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() - begin < 4 * _GRACE:
                os.killpg(self.process.pid, 0)
                time.sleep(0.05)
        return time.monotonic() - begin

    def collect(self) -> Finished:
        """Logs and returns what the command has written, once it has ended."""
        seconds = time.monotonic() - self._begin
        out, err = (path.read_text(errors="replace") for path in self._paths)
        finished = Finished(self.process.wait(), out, err, seconds)
        number = self._paths[0].stem.rpartition("-")[2]
        self._say(f"[{number}] exit code {finished.code} after {seconds:.1f} s")
        for text in filter(str.strip, (out, err)):
            self._say(text)
        return finished
