"""`embedx.build_index(store)`: an approximate index of a store's vectors, by faiss, with its recall.

Shapes: N rows, n rows of a block, S rows of the sample, D embedding dimension.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedx.errors import ConfigError, StoreError, output_error
from embedx.heartbeat import Heartbeat
from embedx.paths import StorePath
from embedx.store.reading.reader import Store
from embedx.vectors.countdown import Countdown
from embedx.vectors.indexing.ann_config import IndexConfig
from embedx.vectors.indexing.ann_file import (
    FOLDER,
    FORMAT,
    AnnIndex,
    IndexFacts,
    commit_index,
    index_file,
    read_index_facts,
    temporary_index,
)
from embedx.vectors.indexing.ann_recall import measure_recall
from embedx.vectors.indexing.faiss_jobs import Floats, Numbers
from embedx.vectors.indexing.faiss_process import FaissProcess
from embedx.vectors.indexing.index_factory import default_factory, sample_rows
from embedx.vectors.vector_rows import VectorRows, open_rows, unit_length

_BLOCK_BYTES = 16 * 1024**2


@dataclasses.dataclass(frozen=True)
class IndexResult:
    """An approximate index, and how it came about."""

    store: StorePath
    """The place of the store."""
    index: AnnIndex
    """The index: its files, and its recall."""
    built: bool
    """False if it was there already."""
    seconds: float
    """The time that it took."""

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain JSON values."""
        return {
            "store": str(self.store),
            "built": self.built,
            "seconds": round(self.seconds, 3),
            **self.index.to_json(),
        }


def build_ann_index(
    store: Store, config: IndexConfig, device: torch.device | None, heartbeat: Heartbeat
) -> IndexResult:
    """Builds an approximate index of a store's vectors and measures its recall, unless it is there already.

    The same store, settings and number of threads give the same bytes, where faiss does: by inverted files it does, and
    by HNSW in one thread.

    Args:
        store: The store, which has to be complete.
        config: The settings, valid ones.
        device: The device of the exact search; None takes the CPU.
        heartbeat: The receiver of progress.

    Raises:
        ConfigError: If the settings don't fit the store, it is not complete, another index of it is there, or faiss is
            not installed.
        StoreReplacedError: If another store takes its place.
        StoreError: If the store is damaged, or the index can't be written.
    """
    started = time.perf_counter()
    if not store.complete:
        raise ConfigError(
            f"{store.path} is not complete, and its rows will change; run the same `embedx extract` again, and then "
            "`embedx index`"
        )
    folder = config.out or store.path / FOLDER
    if not isinstance(folder, Path):
        raise ConfigError(
            f"{store.path} is in a bucket, and an index is written on this machine; give --out FOLDER, and the same "
            "folder by --index to `embedx search --approximate`"
        )
    heartbeat.say("looking through the splits")
    rows = open_rows(store, config.split, name=config.name)
    factory = config.factory or default_factory(len(rows))
    if folder == store.path / FOLDER and folder.is_symlink():
        raise StoreError(f"{folder} is a link, and links in a store are not followed; remove it, or give --out")
    facts = IndexFacts(
        format=FORMAT,
        manifest_sha256=store.folder.manifest_sha256 or "",
        name=config.name,
        splits=list(config.split) or store.splits,
        rows=len(rows),
        indexed=0,
        dim=rows.dim,
        factory=factory,
        seed=config.seed,
        depth=None,
        recall_wanted=config.recall,
        recall=0.0,
        recall_rows=0,
        file="",
        bytes=0,
        sha256="",
    )
    there = None if config.overwrite else _same(store, folder, facts, is_in_store=config.out is None)
    index = there or _build(rows, facts, folder, config.threads, device, heartbeat)
    return IndexResult(store.path, index, there is None, time.perf_counter() - started)


def _same(store: Store, folder: Path, facts: IndexFacts, *, is_in_store: bool) -> AnnIndex | None:
    """Returns the index that is there, if it is the one to be built; None if there is none, or an old one in the store.

    Raises:
        ConfigError: If it is another one, which somebody may need.
    """
    there = read_index_facts(store, folder, facts.name)
    if there is None:
        return None
    if there.facts.manifest_sha256 != facts.manifest_sha256:
        if is_in_store:
            return None
        raise ConfigError(
            f"--out {folder} has an index of another store, or of this one before it changed; give --overwrite to "
            "replace it, or another --out"
        )
    settings = ("splits", "factory", "seed", "recall_wanted")
    changes = [
        f"{name.removesuffix('_wanted')} was {was}, and is {now}"
        for name in settings
        if (was := getattr(there.facts, name)) != (now := getattr(facts, name))
    ]
    if changes:
        raise ConfigError(
            f"{folder} has an index of {facts.name!r} with other settings ({'; '.join(changes)}); give --overwrite to "
            "build it anew, or another --out"
        )
    try:
        return there if index_file(store, folder, there.facts.file).size() == there.facts.bytes else None
    except StoreError:
        return None


def _build(
    rows: VectorRows,
    facts: IndexFacts,
    folder: Path,
    threads: int | None,
    device: torch.device | None,
    heartbeat: Heartbeat,
) -> AnnIndex:
    with _writing(rows.store, folder, facts.name) as temporary, FaissProcess(threads) as faiss:
        if faiss.create(rows.dim, facts.factory):
            count = sample_rows(facts.factory, len(rows), rows.dim)
            heartbeat.say(f"reading {count:,} vectors to train with")
            sample = _sample(rows, count, facts.seed)
            heartbeat.say(f"training {facts.factory} with {count:,} vectors")
            faiss.train(sample, count)
        usable = _add_all(faiss, rows, heartbeat)
        heartbeat.say("writing the index")
        written = faiss.write(temporary)
        recall = measure_recall(faiss, rows, usable, facts.recall_wanted, facts.seed, device, heartbeat)
        if not rows.store.folder.is_current():
            raise rows.store.folder.fault("")
        facts = facts._replace(indexed=len(usable), depth=recall.depth, recall=recall.value, recall_rows=recall.rows)
        return commit_index(folder, temporary, written, facts)


def _sample(rows: VectorRows, count: int, seed: int) -> Iterator[Floats]:
    """Yields the vectors [n, D] of rows that are chosen by a seed, but for those of no use."""
    numbers = np.sort(np.random.default_rng(seed).choice(len(rows), count, replace=False))
    size = _block_rows(rows)
    for start in range(0, count, size):
        vectors, is_usable = _usable(rows.take(numbers[start : start + size]))
        yield vectors[is_usable]


def _add_all(faiss: FaissProcess, rows: VectorRows, heartbeat: Heartbeat) -> Numbers:
    """Adds all rows but those of no use to the index; returns the numbers of those that it has."""
    countdown = Countdown(heartbeat, f"adding {len(rows):,} vectors", len(rows))
    added: list[Numbers] = []
    for first, block in rows.blocks(_block_rows(rows)):
        vectors, is_usable = _usable(block)
        numbers = first + np.flatnonzero(is_usable)
        if len(numbers):
            faiss.add(vectors[is_usable], numbers)
            added.append(numbers)
        countdown.add(len(block))
    if not added:
        raise ConfigError(
            f"{rows.store.path}: each row of {rows.name!r} is all zeros, or has NaN or infinity, and so is near to "
            "nothing; give another --split or --name"
        )
    return np.concatenate(added)


def _usable(block: torch.Tensor) -> tuple[Floats, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Returns the vectors [n, D] scaled to the length 1, and which [n] of them are neither zero nor not finite."""
    units = unit_length(block)
    return units.numpy(), (units != 0).any(dim=1).numpy()


def _block_rows(rows: VectorRows) -> int:
    return max(1, _BLOCK_BYTES // (rows.dim * np.float32().itemsize))


@contextlib.contextmanager
def _writing(store: Store, folder: Path, name: str) -> Iterator[Path]:
    """Yields the path of a temporary file for the index; nothing is left there if it gets no name.

    Raises:
        ConfigError: If the index can't be written there.
        StoreReplacedError: If it was in a store that another one has replaced.
        StoreError: If it can't be written now, as on a full disk.
    """
    try:
        with temporary_index(folder, name) as temporary:
            yield temporary
    except OSError as error:
        if not store.folder.is_current():
            raise store.folder.fault("") from error
        raise output_error(folder, "the index can't be written", error, is_store=False) from error
