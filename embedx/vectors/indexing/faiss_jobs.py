"""The work that the process of faiss does; nothing here, nor what it imports, imports torch.

Shapes: n rows of a block, D embedding dimension, q queries, k neighbours.
"""

from __future__ import annotations

import hashlib
import os
import select
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any, NamedTuple

import numpy as np

from embedx.errors import ConfigError, EmbedxError

Floats = np.ndarray[tuple[int, int], np.dtype[np.float32]]
"""Vectors or similarities, a row each."""
Numbers = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
"""The numbers of rows."""

_DEPTHS = (("IVF", "nprobe"), ("HNSW", "efSearch"))
"""The kinds of an index in faiss's class names, and the parameter that says how much of each a search looks at."""
_LONGEST_LIST = 4096
"""The largest efSearch that is tried: more takes longer than looking at all."""


class WrittenIndex(NamedTuple):
    """The file of an index."""

    bytes: int
    """The size of the file."""
    sha256: str
    """The sha256 of its bytes, as hexadecimal digits."""


class Depth(NamedTuple):
    """The parameter of an index by which a search looks at more of it, to find more of the nearest and take longer."""

    name: str
    """The name by which faiss knows it, such as `nprobe`."""
    most: int
    """The value at which a search looks at all there is, or at as much as is of use."""


class FaissJobs:
    """One index of faiss, and what is done with it; a method is a job.

    Args:
        threads: The number of threads that faiss computes in.

    Raises:
        ConfigError: If faiss is not installed.
    """

    def __init__(self, threads: int) -> None:
        try:
            import faiss
        except ImportError as error:
            raise ConfigError(f"faiss is missing ({error}): pip install 'embedx[faiss]'") from error
        self.faiss: Any = faiss
        self.index: Any = None
        self.sample: Floats = np.empty((0, 0), np.float32)
        self.filled = 0
        faiss.omp_set_num_threads(threads)

    def create(self, dim: int, factory: str, *, by_number: bool) -> bool:
        """Makes an empty index of vectors of the length `dim` that are compared by their inner product.

        Args:
            dim: The length of the vectors, D.
            factory: The description of the index, in the words of faiss's `index_factory`.
            by_number: Whether vectors are added with numbers of their own; else they are numbered from 0.

        Returns:
            True if it has to be trained.

        Raises:
            ConfigError: If faiss does not understand the description, or can't make such an index.
        """
        try:
            self.index = self.faiss.index_factory(dim, factory, self.faiss.METRIC_INNER_PRODUCT)
        except (RuntimeError, AssertionError) as error:
            reason = _reason(error)
            raise ConfigError(
                f"--factory {factory}: faiss can't make such an index of vectors of {dim} numbers ({reason}); give "
                "one of https://github.com/facebookresearch/faiss/wiki/The-index-factory, such as IVF1024,Flat"
            ) from error
        numbered = (self.faiss.IndexIVF, self.faiss.IndexIDMap)
        if by_number and not isinstance(self._inner(self.faiss.IndexPreTransform), numbered):
            self.index = self.faiss.IndexIDMap2(self.index)
        return not self.index.is_trained

    def reserve(self, rows: int) -> None:
        """Makes room for a sample of so many vectors to train with."""
        self.sample, self.filled = np.empty((rows, self.index.d), np.float32), 0

    def fill(self, vectors: Floats) -> None:
        """Adds vectors [n, D] to the sample."""
        self.sample[self.filled : self.filled + len(vectors)] = vectors
        self.filled += len(vectors)

    def train(self) -> None:
        """Trains the index with the sample, which is then forgotten.

        Raises:
            ConfigError: If the sample is too small for such an index.
        """
        try:
            self.index.train(self.sample[: self.filled])
        except RuntimeError as error:
            raise ConfigError(
                f"faiss can't train such an index with {self.filled} vectors ({_reason(error)}); give a --factory "
                "with fewer lists and codes, or Flat"
            ) from error
        self.reserve(0)

    def add(self, vectors: Floats, numbers: Numbers | None) -> None:
        """Adds vectors [n, D], with their numbers [n] if they are added by number."""
        if numbers is None:
            self.index.add(vectors)
        else:
            self.index.add_with_ids(vectors, numbers)

    def write(self, path: str) -> WrittenIndex:
        """Writes the index to a file, and syncs it.

        Raises:
            OSError: If that fails, as on a full disk; the file is removed.
        """
        digest = hashlib.sha256()
        failures: list[OSError] = []

        with open(path, "xb") as file:  # which follows no link

            def write(data: bytes) -> int:
                try:
                    file.write(data)
                except OSError as error:
                    failures.append(error)
                    return 0
                digest.update(data)
                return len(data)

            try:
                self.faiss.write_index(self.index, self.faiss.PyCallbackIOWriter(write))
                file.flush()
                os.fsync(file.fileno())
            except (RuntimeError, OSError):
                os.unlink(path)
                if failures:
                    raise failures[0] from None
                raise
            return WrittenIndex(file.tell(), digest.hexdigest())

    def read(self, descriptor: int, sha256: str) -> bool:
        """Reads an index from an open file, which it closes; returns False if the file's sha256 is another one."""
        with open(descriptor, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                return False
            file.seek(0)
            self.index = self.faiss.read_index(self.faiss.PyCallbackIOReader(file.read))
        return True

    def depth(self) -> Depth | None:
        """Returns the parameter by which a search looks at more of the index; None if it always looks at all."""
        core = self._inner(self.faiss.IndexIDMap, self.faiss.IndexPreTransform, self.faiss.IndexRefine)
        for kind, name in _DEPTHS:
            if kind in type(core).__name__:
                return Depth(name, int(core.nlist) if kind == "IVF" else min(self.index.ntotal, _LONGEST_LIST))
        return None

    def search(self, queries: Floats, k: int, depth: tuple[str, int] | None) -> tuple[Floats, Numbers]:
        """Finds the nearest rows of queries.

        Args:
            queries: The queries [q, D].
            k: The number of rows to find of each.
            depth: The name and the value of the parameter that says how much of the index is looked at.

        Returns:
            The similarities [q, k] by the index, and the numbers [q, k] of the rows; -1 where there are no more.
        """
        if depth is not None:
            self.faiss.ParameterSpace().set_index_parameter(self.index, *depth)
        similarities, numbers = self.index.search(queries, k)
        return similarities, numbers

    def _inner(self, *outer: Any) -> Any:
        """Returns the index within those of some kinds, as number its vectors, change them or refine what it finds."""
        index = self.index
        while isinstance(index, outer):
            index = self.faiss.downcast_index(getattr(index, "base_index", None) or index.index)
        return index


def serve(descriptor: int, threads: int) -> None:
    """Does the jobs that come through a connection, one after the other, and ends when its other end is closed.

    Args:
        descriptor: The number of the connection's open file.
        threads: The number of threads that faiss computes in.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    threading.Thread(target=_end_with, args=(descriptor,), name="parent-watch", daemon=True).start()
    connection = Connection(descriptor)
    jobs: list[FaissJobs] = []

    def start() -> None:
        jobs.append(FaissJobs(threads))

    connection.send(_done(start))
    while True:
        name, arguments, options = connection.recv()
        if name == "read":
            arguments = (recv_handle(connection), *arguments)
        connection.send(_done(lambda: getattr(jobs[0], name)(*arguments, **options)))  # noqa: B023  (called at once)


def _done(job: Callable[[], Any]) -> tuple[Exception | None, Any]:
    """Does a job; returns its error and its result."""
    try:
        return None, job()
    except (EmbedxError, OSError) as error:
        error.__cause__ = None
        return error, None
    except MemoryError:
        return EmbedxError(
            "the process of faiss has no more memory; give a smaller --factory, such as one of SQ8"
        ), None
    except Exception as error:  # noqa: BLE001  (the parent tells it)
        return EmbedxError(f"faiss failed ({_reason(error)})"), None


def _end_with(descriptor: int) -> None:
    """Ends this process, whatever it computes, when the parent's end of the connection is closed."""
    hung_up = select.poll()
    hung_up.register(descriptor, 0)  # POLLHUP is always told
    if any(event & select.POLLHUP for _, event in hung_up.poll()):  # and not that this process ends, and has closed it
        os._exit(1)


def _reason(error: BaseException) -> str:
    """Returns the last clause of faiss's error text, without its C++ function, file and line."""
    text = " ".join(str(error).split())
    clause = text.rpartition(" at /")[2].partition(": ")[2] or text
    return clause.rpartition(" failed: ")[2] or type(error).__name__
