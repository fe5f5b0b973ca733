"""A member of a run: it builds the model once, and computes the units that the driver hands out, round by round.

    Setup → build the model → Ready
    TryOut → Settled      one member alone, where the precision or the runtime is open
    Begin                 by which a model of another precision or runtime may have to be built
    until End:
        Ask(None) → Order                     it is idle, and waits
        a loader per split: Ask(split) → Order, until NoneNow     its workers decode ahead, over the ends of units
        Progress and Committed, as they come
        RoundOver

A thread receives the driver's messages, so that the loop is stopped at once, and saves the unit under way, when the
driver ends the run or is gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from rich.console import Console
from torch import nn

from embedx.callbacks.rejected import RejectedInputs
from embedx.callbacks.throughput import Throughput
from embedx.data.loading.peeked import PeekedLoader
from embedx.distribute.messages import (
    Ask,
    Begin,
    Committed,
    End,
    Failed,
    NoneNow,
    Order,
    Progress,
    Ready,
    RoundOver,
    Said,
    Settled,
    Setup,
    TryOut,
)
from embedx.distribute.sight import check_inputs, check_store, plan_seen
from embedx.engine.callback import Callback
from embedx.engine.state import Batch, Outputs, TrainerState
from embedx.errors import EmbedxError, Interrupted, LoaderError, MemberError, WriterLostError
from embedx.models.device import resolve_device
from embedx.models.runtimes.base import Runtime
from embedx.run.compute import allow_resources, match_text, rejected_inputs, run_over, writer_for
from embedx.run.job import Job
from embedx.run.prepare import describe_spec, input_shape, use_machine
from embedx.run.same_bits import settle_threads
from embedx.run.settle import settle
from embedx.store.format.contents import SplitTotals
from embedx.store.format.creation import new_token
from embedx.store.format.layout import StoreTerms, Unit
from embedx.store.format.manifest import Manifest
from embedx.store.writing.unit_rows import EarlierUnits
from embedx.system.machine import keep_large_blocks
from embedx.system.signals import end_without_a_word, raise_interrupted
from embedx.terminal import traceback_lines

_AGAIN_SECONDS = 0.05
"""The time after which a signal that was dropped is sent again."""
_PROGRESS_SECONDS = 0.5
"""The time from one message of progress to the next."""


def serve(link: Connection) -> None:
    """Computes what the driver at the other end hands out, until it ends the run or is gone.

    Call it in the main thread of a process of its own: SIGTERM stops it, and is what it sends itself.
    """
    driver = _Driver(link)
    end_without_a_word()
    signal.signal(signal.SIGTERM, raise_interrupted)
    sys.unraisablehook = _raise_again
    with contextlib.suppress(Interrupted):
        try:
            _Member(driver).run()
        except (LoaderError, WriterLostError) as error:  # this one is lost; another one may well do
            driver.tell(Said(str(error), None))
            sys.exit(1)
        except EmbedxError as error:
            driver.tell(Failed(error))
        except Exception as error:  # noqa: BLE001  (the driver must hear of any error)
            failure = MemberError(f"a fault of embedx itself: {type(error).__name__}: {error}; report it with --debug")
            failure.add_note("in the member:\n" + "\n".join(traceback_lines(error)))
            driver.tell(Failed(failure))
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this process is at its end


def _raise_again(ignored: sys.UnraisableHookArgs) -> None:
    """Stops the loop after all if the signal came while Python freed an object, where it drops what is raised."""
    if isinstance(ignored.exc_value, Interrupted):
        signal.signal(signal.SIGTERM, raise_interrupted)
        threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
        sys.__unraisablehook__(ignored)


class _Driver:
    """The driver, as a member sees it."""

    def __init__(self, link: Connection) -> None:
        self._link = link
        self._orders = queue.SimpleQueue[Any]()
        self._sending = threading.Lock()
        threading.Thread(target=self._receive, name="driver", daemon=True).start()

    def tell(self, message: Any) -> None:
        """Sends a message; does nothing if the driver is gone."""
        with self._sending, contextlib.suppress(OSError):
            self._link.send(message)

    def next(self) -> Any:
        """Waits for the next message."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._orders.get(timeout=1.0)  # so that a signal's handler gets its turn

    def _receive(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while not isinstance(message := self._link.recv(), End):
                self._orders.put(message)
            if message.is_complete:
                os._exit(0)  # what is under way here, others have committed
        os.kill(os.getpid(), signal.SIGTERM)


class _Hold:
    """The driver's hold of the store, as a member's writer needs it."""

    def __init__(self, terms: StoreTerms, manifest: Manifest, driver: _Driver) -> None:
        self.terms = terms
        self.manifest = manifest
        self.earlier = EarlierUnits()
        self._driver = driver

    def set_rows_per_unit(self, rows: int) -> NoReturn:
        raise RuntimeError("the driver has stated the size of the units")

    def on_commit(self, unit: Unit) -> None:
        self._driver.tell(Committed(unit))

    def finish(self, timings: Mapping[str, float]) -> Manifest:
        self._driver.tell(RoundOver(timings))
        return dataclasses.replace(self.manifest, totals=dict[str, SplitTotals]())

    def close(self) -> None:
        pass


class _Reporter(Callback):
    """Tells the driver how many inputs are done."""

    def __init__(self, driver: _Driver, splits: Sequence[str], rejected: RejectedInputs) -> None:
        super().__init__()
        self._driver, self._splits, self._rejected = driver, splits, rejected
        self._split: str | None = None
        self._inputs = 0
        self._lost = {"rejected": 0, "unavailable": 0}
        """The numbers that the driver has been told."""
        self._told = 0.0

    def on_test_batch_end(
        self,
        trainer_state: TrainerState,
        model: nn.Module,
        outputs: Outputs,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        split = self._splits[dataloader_idx]
        if split != self._split:
            self._tell()
            self._split = split
        self._inputs += len(batch["index"])
        if time.monotonic() - self._told > _PROGRESS_SECONDS:
            self._tell()

    def on_test_epoch_end(self, trainer_state: TrainerState, model: nn.Module) -> None:
        self._tell()

    def _tell(self) -> None:
        if self._split is not None:
            lost, before = self._rejected.lost(), self._lost
            new = {status: number - before[status] for status, number in lost.items()}
            self._driver.tell(Progress(self._split, self._inputs, **new, example=self._rejected.example))
            self._lost = lost
        self._inputs = 0
        self._told = time.monotonic()


class _Member:
    def __init__(self, driver: _Driver) -> None:
        self._driver = driver
        self._setup: Setup = driver.next()

    def run(self) -> None:
        setup, driver = self._setup, self._driver
        config = setup.config
        is_elsewhere = setup.host != socket.gethostname()
        plan = plan_seen(setup)
        if is_elsewhere:
            check_inputs(plan, setup.host)
        device = resolve_device(config.device)
        use_machine(device, config.threads)
        if device.type == "cpu":
            keep_large_blocks()
        console = _Notices(driver)
        spec = describe_spec(config, input_shape(config, plan), notice=console.print)
        job = Job(config, plan, spec, device, setup.precision, setup.batch_size, (setup.runtime,))
        allow_resources(job.workers)
        model = job.build_model(console)
        if text := match_text(job):
            console.print(text)
        driver.tell(Ready(job.recipe.to_json(), job.unit_environment))
        while isinstance(message := driver.next(), TryOut):
            job, model = self._settle(job, message, console)
        begin: Begin = message
        recipe = begin.manifest.recipe
        if (settled := (recipe.precision, recipe.runtime)) != (job.precision, job.runtimes[0]):
            job = dataclasses.replace(job, precision=settled[0] or job.precision, runtimes=(settled[1] or model.name,))
            model = job.build_model(console)
        if is_elsewhere:
            check_store(begin.terms.root, begin.manifest, setup.host)
        model = settle_threads(job, model, begin.threads, console)
        job = dataclasses.replace(job)  # which states this number of threads
        writer = begin.terms.writer._replace(token=new_token(), environment=job.unit_environment)
        hold = _Hold(begin.terms._replace(writer=writer), begin.manifest, driver)
        while True:
            driver.tell(Ask(None))
            self._round(job, model, hold, driver.next())

    def _settle(self, job: Job, task: TryOut, console: Console) -> tuple[Job, Runtime]:
        job = dataclasses.replace(job, rivals=task.rivals, may_take_bf16=task.may_take_bf16)
        loader = PeekedLoader(job.loader(job.plan.splits[task.split], [task.rows]))
        try:
            job, model, _, _, measured = settle(job, loader, task.batches, console)
        finally:
            loader.close()
        self._driver.tell(Settled(job.precision, model.name, job.environment, measured))
        return job, model

    def _round(self, job: Job, model: Runtime, hold: _Hold, first: Order) -> None:
        """Computes a unit, and further ones as long as there are any behind it in the plan."""
        driver = self._driver
        orders = [first]

        def units(split: str) -> Iterator[Sequence[int]]:
            order: Any = orders.pop() if orders else None
            while order is not None or not isinstance(order := self._ask(split), NoneNow):
                hold.earlier.computed.setdefault(order.unit, []).extend(order.earlier)
                yield order.rows
                order = None

        names = list(job.plan.splits)
        names = names[names.index(first.unit.split) :]
        rejected = rejected_inputs(
            job,
            lambda text: driver.tell(Said(text, "bold magenta")),
            (lambda text: driver.tell(Said(text, None, is_detail=True))) if self._setup.verbose else None,
        )
        writer = writer_for(job, hold, names, rejected)
        again = self._setup.retried
        loaders = {name: job.loader(job.plan.splits[name], units(name), again=again.get(name, ())) for name in names}
        run_over(job, model, loaders, [_Reporter(driver, names, rejected), rejected, Throughput(), writer])

    def _ask(self, split: str) -> Any:
        self._driver.tell(Ask(split))
        return self._driver.next()


class _Notices(Console):
    """A console whose lines the driver prints."""

    def __init__(self, driver: _Driver) -> None:
        super().__init__(quiet=True)
        self._driver = driver

    def print(self, *objects: Any, style: Any = None, **_: Any) -> None:
        self._driver.tell(Said(" ".join(map(str, objects)), style))
