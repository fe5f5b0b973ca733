"""Worker processes of torch's DataLoader, supervised: the one file that knows how torch reports a failure.

It does not read the texts of DataLoader's errors. An error raised while a batch is loaded leaves its worker as a
BatchError; any other error of DataLoader means that a worker ended or that no batch came in time, and the worker
processes themselves tell which.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import re
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from functools import partial
from multiprocessing import connection, queues, reduction
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, Self

from torch.utils.data import DataLoader, Dataset, Sampler

from embedx.data.loading.circumstances import NO_END, UNREAD, Failure
from embedx.data.loading.isolation import InHand, become_decoding_process, end_late_workers
from embedx.errors import LoaderError
from embedx.system.machine import free_shared_memory
from embedx.system.processes import CHILDREN, abandon
from embedx.values import size_text

_PREFETCH_BATCHES = 4
"""The number of batches that each worker decodes ahead of the forward pass, where shared memory has room for them."""
_BATCHES_IN_USE = 2
"""The number of batches that the loop has in hand, beside those that wait."""
_POLL_SECONDS = 1.0
"""The seconds without a batch after which the workers are examined."""
_IDLE_SECONDS = 300.0
"""The seconds without a batch after which workers that have no input in hand count as lost."""
_END_SECONDS = 2.0
"""The seconds that workers have to end by themselves once they are no longer needed."""
_LOADER_ERRORS = (RuntimeError, EOFError, ConnectionError, FileNotFoundError)
"""The errors that DataLoader raises; all but the first come from asking a dead worker for the memory of a batch."""
_OUT_OF_MEMORY = re.compile(r"DefaultCPUAllocator|(can't allocate|not enough|out of) memory", re.IGNORECASE)
"""Either torch's allocator or its complaint: one of them still matches when torch changes the other."""


_started = weakref.WeakSet[BaseProcess]()
"""The workers of this process, of which none may keep it from ending."""


@atexit.register
def _abandon_workers() -> None:
    for process in list(_started):
        abandon(process)


class BatchError(Exception):
    """Loading a batch raised an error in a worker; the message holds that worker's traceback."""


class WorkerLostError(Exception):
    """A worker ended before its batch was done, or does not come back from an input."""


class WorkerCounts(NamedTuple):
    """The numbers of workers and of batches that fit into shared memory, through which batches come."""

    workers: int
    prefetch: int
    """The number of batches that each worker decodes ahead."""

    @classmethod
    def fitting(cls, workers: int, batch_bytes: int, batch_size: int) -> Self:
        """Returns at most so many workers; half of what is free is left to the workers of the next split.

        Raises:
            LoaderError: If there is no room for even one batch ahead.
        """
        free = free_shared_memory()
        if not workers or not batch_bytes or free is None:
            return cls(workers, _PREFETCH_BATCHES)
        room = (free // batch_bytes - _BATCHES_IN_USE + 1) // 2
        if room < 1:
            raise LoaderError(
                f"shared memory (/dev/shm) has {size_text(free)} free, and each batch of {batch_size} takes "
                f"{size_text(batch_bytes)} there; give the container more (Docker's shm-size), a smaller "
                "--batch-size, or --workers 0"
            )
        return cls(min(workers, room), max(1, min(_PREFETCH_BATCHES, room // workers)))


class TorchWorkers:
    """Iterates once over the batches that worker processes load; they start at once and end with this object.

    Args:
        dataset: The dataset whose `__getitems__` loads a batch; picklable.
        in_hand: The record of the inputs in hand, and the number of workers; with 0 this process loads the batches.
        prefetch: The number of batches that each worker decodes ahead.
        timeout: The seconds that one input may take.
        niceness: The steps of priority by which the workers come after this process.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batches: Sampler[Any],
        in_hand: InHand,
        *,
        prefetch: int = _PREFETCH_BATCHES,
        timeout: float,
        pin_memory: bool,
        niceness: int = 0,
    ) -> None:
        self._in_hand = in_hand
        self._timeout = timeout
        workers = in_hand.workers
        others = set(multiprocessing.active_children())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # more workers than cores serve well where images are remote
            loader = DataLoader(
                _Guarded(dataset) if workers else dataset,
                batch_sampler=batches,
                collate_fn=_as_is,
                num_workers=workers,
                prefetch_factor=prefetch if workers else None,
                multiprocessing_context=CHILDREN if workers else None,
                worker_init_fn=partial(_start_worker, niceness) if workers else None,
                pin_memory=pin_memory,
                timeout=_POLL_SECONDS if workers else 0,
            )
            self._iterator: Iterator[dict[str, Any]] = iter(loader)
        self._processes = {process.pid: process for process in set(multiprocessing.active_children()) - others}
        _started.update(self._processes.values())
        if workers:
            over = threading.Event()
            weakref.finalize(self, over.set)
            watch = threading.Thread(target=end_late_workers, args=(in_hand, timeout, over), daemon=True)
            watch.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, Any]:
        """Waits for the next batch.

        Raises:
            WorkerLostError: If a worker ended, or an input takes longer than the timeout.
            BatchError: If loading the batch raised one of the errors that DataLoader itself raises.
        """
        polls = 0  # as a clock would go on while this process is suspended
        while True:
            polls += 1
            polled = time.monotonic()
            try:
                return next(self._iterator)
            except _LOADER_ERRORS as error:
                if not self._processes:
                    raise
                timed_out = isinstance(error, RuntimeError) and time.monotonic() - polled > 0.9 * _POLL_SECONDS
                if self._any_ended(0 if timed_out else _POLL_SECONDS) or (timed_out and not self._may_wait(polls)):
                    raise WorkerLostError(repr(error)) from error
                if not timed_out:
                    raise

    def close(self) -> None:
        """Ends the workers, whatever they are doing; does nothing once all batches have been delivered.

        Otherwise they would live as long as something refers to the iterator, such as the traceback that an interactive
        interpreter keeps.
        """
        if not any(process.is_alive() for process in self._processes.values()):
            return
        # A private name, for which there is no other; without it the workers are killed, which torch copes with too. In
        # a thread, as it waits for each worker in turn, and some may be stuck.
        ending = threading.Thread(target=getattr(self._iterator, "_shutdown_workers", bool), daemon=True)
        ending.start()
        ending.join(_END_SECONDS)
        for process in self._processes.values():
            abandon(process)

    def rows_in_hand(self) -> tuple[dict[int, Failure], set[int]]:
        """Returns the rows that ran into the time limit, and the suspects: rows that other dead workers had in hand."""
        self._any_ended(_POLL_SECONDS)
        stuck: dict[int, Failure] = {}
        suspects: set[int] = set()
        for held in self._in_hand.now():
            process = self._processes[held.pid]
            if held.is_stuck(self._timeout):
                stuck[held.row] = UNREAD if held.is_reading else Failure(NO_END)
            elif process.exitcode is not None:
                suspects.add(held.row)
        return stuck, suspects

    def _any_ended(self, seconds: float) -> bool:
        """Waits at most so many seconds for the end of a worker; tells whether one has ended."""
        return bool(connection.wait([process.sentinel for process in self._processes.values()], seconds))

    def _may_wait(self, polls: int) -> bool:
        """Tells whether a batch can still be expected, though so many times in a row none came in time."""
        held = self._in_hand.now()
        if not held:  # the workers are still starting, or the thread that receives batches has died
            return polls * _POLL_SECONDS < _IDLE_SECONDS
        return not any(one.is_overdue(self._timeout) for one in held)


class _Guarded(Dataset[Any]):
    """Raises a BatchError in place of each error that could be mistaken for one of DataLoader's own."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getitems__(self, orders: Any) -> Any:
        try:
            return self._dataset.__getitems__(orders)
        except _LOADER_ERRORS as error:
            raise BatchError(f"{type(error).__name__}: {error}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether an error says that this process could not allocate memory; torch's has no type of its own."""
    return isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)) is not None


def _start_worker(niceness: int, worker: int) -> None:
    become_decoding_process("embedx-loader")
    os.nice(niceness)
    # libpng and libtiff print a line per odd file; the reason of a rejected input tells what matters of it.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    # Starts the thread that hands out the memory of batches. If memory were too short for it later, when the first one
    # is asked for, the parent would wait for ever.
    reduction.DupFd(nowhere)
    # A batch that can't be sent, for want of descriptors or of shared memory, would be dropped without a word, and the
    # parent wait for it for minutes; with its worker it is lost at once. (Without this hook the minutes are waited.)
    queues.Queue._on_queue_feeder_error = lambda *_: os._exit(1)  # type: ignore[attr-defined]


def _as_is(batch: Any) -> Any:
    return batch
