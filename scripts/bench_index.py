"""Seconds, size and recall of an approximate index, and its queries a second beside those of exact search.

A store of rows around random centres is written by embedx's own writer: rows without any structure have no near
neighbours, and no index finds those. Memory is what each process takes at most of its own (anonymous memory, mapped
files left out), sampled while the index is built.

    python scripts/bench_index.py --folder /tmp/bench --rows 1000000 --dim 128
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

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
from embedx.vectors.indexing.ann_file import open_ann_index
from embedx.vectors.indexing.ann_search import found_by, read_checked
from embedx.vectors.indexing.faiss_process import FaissProcess
from embedx.vectors.searching.nearest import nearest
from embedx.vectors.vector_rows import open_rows

ROWS_PER_UNIT = 65_536


def make_store(out: Path, rows: int, dim: int, centres: int, noise: float) -> Path:
    """Writes a store of rows around random centres, unless it is there."""
    if out.is_dir():
        return out
    session = StoreSession.begin(
        out, Manifest(StoredRecipe(), PlanTerms(None, ROWS_PER_UNIT, splits={"train": SplitTerms(rows)})), "create"
    )
    generator = torch.Generator().manual_seed(0)
    middle = torch.randn(centres, dim, generator=generator)
    for start in range(0, rows, ROWS_PER_UNIT):
        count = min(ROWS_PER_UNIT, rows - start)
        own = torch.randint(0, centres, (count,), generator=generator)
        embeddings = middle[own] + noise * torch.randn(count, dim, generator=generator)
        columns: dict[str, Any] = {name: [None] * count for name in ROW_SCHEMA.names}
        columns |= {"split": ["train"] * count, "index": range(start, start + count), "status": ["ok"] * count}
        columns |= {"key": [f"images/{row:07d}.jpg" for row in range(start, start + count)]}
        buffer = UnitBuffer(session.terms)
        table = pa.table(columns, schema=ROW_SCHEMA)
        buffer.add(UnitBatch(Unit("train", start // ROWS_PER_UNIT), {"embeddings": embeddings}, table))
        buffer.commit()
    session.finish({"seconds": 0.0})
    session.close()
    return out


@contextlib.contextmanager
def own_memory() -> Iterator[dict[str, int]]:
    """Yields the largest anonymous memory of this process and of its children, in bytes; sampled each 20 ms."""
    most = {"parent": 0, "faiss": 0}
    end = threading.Event()

    def sample() -> None:
        while not end.wait(0.02):
            children = [line for task in Path("/proc/self/task").iterdir() for line in _children(task)]
            most["parent"] = max(most["parent"], _anonymous("self"))
            most["faiss"] = max(most["faiss"], *map(_anonymous, children), 0)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    yield most
    end.set()
    thread.join()


def _children(task: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return (task / "children").read_text().split()
    return []


def _anonymous(pid: str) -> int:
    with contextlib.suppress(OSError):
        found = re.search(r"RssAnon:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


def seconds_of(call: Callable[[], object], rounds: int = 3) -> float:
    """The least of the seconds of a call, after one that does not count."""
    taken = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def main(
    folder: Annotated[Path, typer.Option(help="Folder for the store; one that is there already is used again.")],
    rows: int = 1_000_000,
    dim: int = 128,
    centres: int = 10_000,
    noise: float = 0.7,
    factory: str | None = None,
    queries: int = 1000,
) -> None:
    """Builds an index, unless it is there, and searches by it and exactly."""
    folder.mkdir(parents=True, exist_ok=True)
    out = make_store(folder / f"store-{rows}x{dim}-{centres}-{noise:g}", rows, dim, centres, noise)
    machine = hardware_of(torch.device("cpu"))
    Console().print(
        f"{machine['device']}, {machine['threads']} threads, {rows:,} x {dim}, {centres:,} centres, {noise=}"
    )
    with own_memory() as memory:
        result = embedx.build_index(out, factory=factory, device="cpu")
    facts = result.index.facts
    table = Table("index", "build, s", "size", "recall@10", "memory of the parent", "of faiss", title="building")
    depth = "" if facts.depth is None else f" {facts.depth.name} {facts.depth.value}"
    table.add_row(
        facts.factory + depth,
        f"{result.seconds:.1f}",
        size_text(facts.bytes),
        f"{facts.recall:.4f}",
        size_text(memory["parent"]),
        size_text(memory["faiss"]),
    )
    Console().print(table)
    store = Store.open(out)
    opened = open_rows(store, check=False)
    asked = opened.take(torch.randperm(rows, generator=torch.Generator().manual_seed(1))[:queries].tolist())
    table = Table("queries", "exact, s", "by the index, s", "times as quick", title="searching, both opened before")
    with FaissProcess() as faiss:
        started = time.perf_counter()
        read_checked(faiss, store, open_ann_index(store, "embeddings"))
        Console().print(f"reading the index: {time.perf_counter() - started:.2f} s")
        for count in (1, queries):
            own = asked[:count]
            exact = seconds_of(lambda own=own: list(nearest(opened, own, 10)), 1)  # type: ignore[misc]
            found = seconds_of(lambda own=own: list(found_by(faiss, opened, facts.indexed, facts.depth, own, 10)))  # type: ignore[misc]
            table.add_row(str(count), f"{exact:.3f}", f"{found:.4f}", f"{exact / found:.0f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
