"""Seconds of what is made of a store's vectors, beside those of the plain matrix product over the same mapped numbers.

A store of random rows is written by embedx's own writer. Then, in turn, several times: embedx, and the loop that one
would write by hand. Memory is what embedx takes at most of its own (anonymous memory, mapped files left out).

    python scripts/bench_vectors.py search --folder /tmp/bench
    python scripts/bench_vectors.py duplicates --folder /tmp/bench
"""

from __future__ import annotations

import re
import shutil
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import pyarrow as pa
import torch
import typer
from rich.console import Console
from rich.table import Table

import embedx
from embedx.models.device import hardware_of
from embedx.store.format.contents import PlanTerms, SplitTerms, StoredRecipe
from embedx.store.format.index import ROW_SCHEMA
from embedx.store.format.layout import Unit
from embedx.store.format.manifest import Manifest
from embedx.store.reading.reader import Store
from embedx.store.writing.session import StoreSession
from embedx.store.writing.unit_rows import UnitBatch
from embedx.store.writing.units import UnitBuffer
from embedx.values import size_text

ROWS_PER_UNIT = 65_536  # 128 MiB of 512 numbers, as the shards of an extraction

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Folder = Annotated[Path, typer.Option(help="Folder for the store; one that is there already is used again.")]
Rows = Annotated[int, typer.Option(help="Rows of the store.")]
Dim = Annotated[int, typer.Option(help="Numbers per row.")]
Rounds = Annotated[int, typer.Option(help="Rounds, of which the median counts.")]


def make_store(folder: Path, rows: int, dim: int) -> Path:
    """Writes a store of random rows, unless it is there, and the same numbers in one file of numpy's beside it."""
    out = folder / f"store-{rows}x{dim}"
    if out.is_dir():
        if Store.open(out).complete:
            return out
        shutil.rmtree(out)  # its writing was interrupted
    plan = PlanTerms(None, ROWS_PER_UNIT, splits={"train": SplitTerms(rows)})
    session = StoreSession.begin(out, Manifest(StoredRecipe(), plan), "create")
    generator = torch.Generator().manual_seed(0)
    matrix = np.lib.format.open_memmap(plain_file(out), "w+", np.float32, (rows, dim))
    for start in range(0, rows, ROWS_PER_UNIT):
        count = min(ROWS_PER_UNIT, rows - start)
        embeddings = torch.randn(count, dim, generator=generator)
        matrix[start : start + count] = embeddings.numpy()
        columns: dict[str, Any] = {name: [None] * count for name in ROW_SCHEMA.names}
        columns |= {"split": ["train"] * count, "index": range(start, start + count), "status": ["ok"] * count}
        columns |= {"key": [f"images/{row:07d}.jpg" for row in range(start, start + count)]}
        buffer = UnitBuffer(session.terms)
        unit = Unit("train", start // ROWS_PER_UNIT)
        buffer.add(UnitBatch(unit, {"embeddings": embeddings}, pa.table(columns, schema=ROW_SCHEMA)))
        buffer.commit()
    session.finish({"seconds": 0.0})
    session.close()
    return out


def plain_file(store: Path) -> Path:
    """The file of numpy's with the same numbers as the store."""
    return store.with_suffix(".npy")


class OwnMemory:
    """The largest growth of this process's anonymous memory while it lasts, in bytes; sampled each 5 ms."""

    def __enter__(self) -> Self:
        self._end = threading.Event()
        self._start = self.growth = _anonymous()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self.growth -= self._start

    def _sample(self) -> None:
        while not self._end.wait(0.005):
            self.growth = max(self.growth, _anonymous())


def _anonymous() -> int:
    found = re.search(r"RssAnon:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def in_turn(rounds: int, *calls: Callable[[], object]) -> list[float]:
    """The median of the seconds of each call: all are called in each round, after one that does not count."""
    seconds: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 1):
        for call, own in zip(calls, seconds, strict=True):
            started = time.perf_counter()
            call()
            if turn:
                own.append(time.perf_counter() - started)
    return [statistics.median(own) for own in seconds]


def print_machine() -> None:
    """Prints the processor, its threads and the versions."""
    found = hardware_of(torch.device("cpu"))
    Console().print(f"{found['device']}, {found['threads']} threads, torch {torch.__version__}, {found['capability']}")


@app.command()
def search(
    folder: Folder, rows: Rows = 1_000_000, dim: Dim = 512, k: int = 10, queries: str = "1,100", rounds: Rounds = 7
) -> None:
    """The exact search beside a plain matrix product and topk, which divides by no lengths, on the same mapped rows."""
    from embedx.vectors.searching.nearest import nearest
    from embedx.vectors.vector_rows import open_rows

    folder.mkdir(parents=True, exist_ok=True)
    out = make_store(folder, rows, dim)
    print_machine()
    matrix = torch.from_numpy(np.load(plain_file(out), mmap_mode="r+"))
    opened = open_rows(Store.open(out), check=False)
    table = Table("queries", "plain, s", "embedx, s", "ratio", "with opening, s", "ratio", "own memory", "same rows")
    for count in map(int, queries.split(",")):
        asked = torch.randn(count, dim, generator=torch.Generator().manual_seed(1))
        unit = torch.nn.functional.normalize(asked)

        def plain(unit: torch.Tensor = unit) -> torch.Tensor:
            found: torch.Tensor = (unit @ matrix.T).topk(k).indices
            return found

        def own(asked: torch.Tensor = asked) -> list[Any]:
            return list(nearest(opened, asked, k))

        def whole(asked: torch.Tensor = asked) -> object:
            return embedx.search(out, asked.numpy(), k=k, device="cpu", progress=False)

        seconds = in_turn(rounds, plain, own, whole)
        with OwnMemory() as memory:
            found = own()
        lengths = torch.linalg.vector_norm(matrix, dim=1)
        expected = ((unit @ matrix.T) / lengths).topk(k).indices.tolist()
        same = sum(each.numbers.tolist() == numbers for each, numbers in zip(found, expected, strict=True))
        table.add_row(
            str(count),
            f"{seconds[0]:.3f}",
            f"{seconds[1]:.3f}",
            f"{seconds[1] / seconds[0]:.2f}",
            f"{seconds[2]:.3f}",
            f"{seconds[2] / seconds[0]:.2f}",
            size_text(memory.growth),
            f"{same} of {count}",
        )
    Console(width=110).print(table)


@app.command()
def duplicates(
    folder: Folder, rows: Rows = 100_000, dim: Dim = 512, rounds: Rounds = 3, memory_rows: int = 1_000_000
) -> None:
    """All pairs of rows beside the plain tiled product of the same tiles, from mapped rows that are not normalised.

    In turn; of each the seconds of the clock, and those of the processor, which other programs do not change. Memory is
    that of 4,096 rows beside MEMORY_ROWS, which reads, keeps and lists what all pairs of them do, in less time.
    """
    from embedx.vectors.pairs.tiles import BLOCK_ROWS

    folder.mkdir(parents=True, exist_ok=True)
    out = make_store(folder, rows, dim)
    print_machine()
    matrix = torch.from_numpy(np.load(plain_file(out), mmap_mode="r+"))
    memory_of = torch.empty(BLOCK_ROWS, BLOCK_ROWS)

    def plain() -> None:
        blocks = matrix.split(BLOCK_ROWS)
        for number, block in enumerate(blocks):
            for other in blocks[number:]:
                torch.mm(block, other.T, out=memory_of.view(-1)[: len(block) * len(other)].view(len(block), len(other)))

    def own() -> None:
        embedx.duplicates(out, device="cpu", progress=False)

    table = Table("round", "plain, s", "embedx, s", "ratio", "plain, s of processor", "embedx", "ratio")
    seconds = []
    for turn in range(rounds):
        row = []
        for call in (plain, own):
            clock, processor = time.perf_counter(), time.process_time()
            call()
            row += [time.perf_counter() - clock, time.process_time() - processor]
        seconds.append([row[0], row[2], row[2] / row[0], row[1], row[3], row[3] / row[1]])
        table.add_row(str(turn + 1), *(f"{each:.2f}" for each in seconds[-1]))
    if seconds:
        table.add_row("median", *(f"{statistics.median(column):.2f}" for column in zip(*seconds, strict=True)))
    Console().print(table)
    if memory_rows:
        few, many = make_store(folder, BLOCK_ROWS, dim), make_store(folder, memory_rows, dim)
        with OwnMemory() as memory:
            result = embedx.duplicates(few, many, device="cpu", progress=False)
        told = f"{memory_rows:,} rows, {result.groups} groups, {result.seconds:.1f} s: {size_text(memory.growth)}"
        Console().print(f"{told} of own memory")


if __name__ == "__main__":
    app()
