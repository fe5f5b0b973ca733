"""The process in which faiss runs, without torch.

Each of the two brings an OpenMP of its own, and a process with both crashes
(https://github.com/facebookresearch/faiss/issues/3401).

    with FaissProcess() as faiss:            starts a Python that imports embedx.vectors.indexing.faiss_jobs alone
        faiss.create(dim, "IVF64,Flat")      each call is sent there, and waits for the answer
        faiss.train(blocks, rows)            vectors go there block by block, through a socket
        faiss.add(vectors, numbers)
        faiss.write(path)                    files are written and read there

Shapes: n rows of a block, D embedding dimension, q queries, k neighbours.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import IO, Any, Self, cast

from embedx.errors import EmbedxError
from embedx.system.machine import cores
from embedx.vectors.indexing.faiss_jobs import Depth, Floats, Numbers, WrittenIndex

_END_SECONDS = 5.0
_CODE = (
    "import sys; sys.path[:] = {path!r}; from embedx.vectors.indexing.faiss_jobs import serve; "
    "serve({descriptor}, {threads})"
)
_STDERR_TAIL = 2000
_CRASHES = frozenset({signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV})
"""The signals by which a program ends itself."""


class FaissProcess:
    """One index of faiss in a process of its own, which ends with the `with` block, or with this process.

    Args:
        threads: The number of threads that faiss computes in; None takes the number of cores.

    Every method raises an EmbedxError if the process is killed, or faiss fails.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads or cores()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Starts the process.

        Raises:
            ConfigError: If faiss is not installed.
        """
        self._connection, theirs = multiprocessing.Pipe()
        self._stderr: IO[bytes] = tempfile.TemporaryFile()
        descriptor = theirs.fileno()
        code = _CODE.format(path=sys.path, descriptor=descriptor, threads=self._threads)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},  # threads that spin would steal each other's cores
                pass_fds=[descriptor],
                process_group=0,  # so that a Ctrl-C reaches this process alone, which ends that one
            )
            theirs.close()
            self._answer()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the process, whatever it is doing: its files get their names here."""
        self._connection.close()
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
        self._stderr.close()

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._running.pid

    def create(self, dim: int, factory: str, *, by_number: bool = True) -> bool:
        """Makes an empty index by the inner product, in the words of faiss's `index_factory`.

        Args:
            dim: The length of the vectors, D.
            factory: The description of the index, such as `IVF1024,Flat`.
            by_number: Whether vectors are added with numbers of their own; else they are numbered from 0.

        Returns:
            True if it has to be trained.

        Raises:
            ConfigError: If faiss can't make such an index.
        """
        return bool(self._call("create", dim, factory, by_number=by_number))

    def train(self, blocks: Iterable[Floats], rows: int) -> None:
        """Trains the index.

        Args:
            blocks: The blocks [n, D] of the sample to train with.
            rows: The number of vectors in all blocks.

        Raises:
            ConfigError: If they are too few for such an index.
        """
        self._call("reserve", rows)
        for block in blocks:
            self._call("fill", block)
        self._call("train")

    def add(self, vectors: Floats, numbers: Numbers | None = None) -> None:
        """Adds vectors [n, D], with their numbers [n] if they are added by number."""
        self._call("add", vectors, numbers)

    def write(self, path: Path) -> WrittenIndex:
        """Writes the index to a file, and syncs it; the caller gives the file its final name.

        Raises:
            OSError: If that fails, as on a full disk; the file is removed.
        """
        return cast(WrittenIndex, self._call("write", os.path.abspath(path)))

    def read(self, file: IO[bytes], sha256: str) -> bool:
        """Reads an index from an open file; returns False if the file's sha256 is another one.

        Raises:
            OSError: If the file can't be read.
        """
        return bool(self._call("read", sha256, file=file))

    def depth(self) -> Depth | None:
        """Returns the parameter by which a search looks at more of the index; None if it always looks at all."""
        return cast(Depth | None, self._call("depth"))

    def search(self, queries: Floats, k: int, depth: tuple[str, int] | None = None) -> tuple[Floats, Numbers]:
        """Finds the nearest rows of queries [q, D].

        Returns:
            The similarities [q, k] by the index, and the numbers [q, k] of the rows; -1 where there are no more.
        """
        return cast(tuple[Floats, Numbers], self._call("search", queries, k, depth))

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the process of faiss runs within a `with` block")
        return self._process

    def _call(self, job: str, *arguments: Any, file: IO[bytes] | None = None, **options: Any) -> Any:
        try:
            self._connection.send((job, arguments, options))
            if file is not None:
                send_handle(self._connection, file.fileno(), self.pid)
        except OSError:
            raise self._lost() from None
        return self._answer()

    def _answer(self) -> Any:
        try:
            error, result = self._connection.recv()
        except (EOFError, OSError):
            raise self._lost() from None
        if error is not None:
            raise error
        return result

    def _lost(self) -> EmbedxError:
        """Returns the error for a process that has ended by itself, or was killed."""
        try:
            code = self._running.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return EmbedxError("the process of faiss no longer answers; run the same command again")
        if code >= 0:
            self._stderr.seek(0)
            lines = self._stderr.read().decode(errors="replace")[-_STDERR_TAIL:].strip().splitlines()
            return EmbedxError(
                f"the process of faiss ended with exit code {code} ({lines[-1] if lines else 'no word'})"
            )
        cause = f"was killed by {signal.Signals(-code).name}"
        advice = "the same command begins anew"
        if code == -signal.SIGKILL:
            cause += ", by hand or by the system for want of memory"
        elif -code in _CRASHES:
            advice = "faiss itself has crashed; try another --factory"
        return EmbedxError(f"the process of faiss {cause}; nothing half is left, and {advice}")
