"""Seconds of the k-NN probe beside those of a plain chunked matrix product and topk, and the memory that it takes.

A store of random rows is written by the store's own code. Then, in turn, several times: `embedx.probe`, which streams
the shards, and the loop that one would write by hand over the same rows in memory, normalised beforehand. Memory is
what the probe takes at most of its own (anonymous memory, mapped files left out), sampled while it runs.

    python scripts/bench_probe.py --rows 1000000 --dim 512 --classes 100 -k 20 --queries 1000
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any, Self

import pyarrow as pa
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.nn import functional

import embedx
from embedx.store.format.contents import PlanTerms, SplitTerms, StoredRecipe
from embedx.store.format.index import ROW_SCHEMA
from embedx.store.format.layout import Unit
from embedx.store.format.manifest import Manifest
from embedx.store.writing.session import StoreSession
from embedx.store.writing.unit_rows import UnitBatch
from embedx.store.writing.units import UnitBuffer
from embedx.values import size_text
from embedx.vectors.probing.neighbours import BATCH_ROWS

_ROWS_PER_UNIT = 65_536


def write_store(out: Path, sizes: dict[str, int], dim: int, classes: int) -> None:
    """Writes splits of random rows around one centre per class."""
    plan = PlanTerms(None, _ROWS_PER_UNIT, splits={split: SplitTerms(rows) for split, rows in sizes.items()})
    session = StoreSession.begin(out, Manifest(StoredRecipe(), plan), "create")
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, dim, generator=generator)
    for split, rows in sizes.items():
        for start in range(0, rows, _ROWS_PER_UNIT):
            count = min(_ROWS_PER_UNIT, rows - start)
            targets = torch.randint(0, classes, (count,), generator=generator)
            embeddings = 0.1 * centres[targets] + torch.randn(count, dim, generator=generator)
            columns: dict[str, Any] = {name: [None] * count for name in ROW_SCHEMA.names}
            columns |= {"split": [split] * count, "index": range(start, start + count), "status": ["ok"] * count}
            columns |= {"key": [str(row) for row in range(start, start + count)], "target": targets.tolist()}
            buffer = UnitBuffer(session.terms)
            table = pa.table(columns, schema=ROW_SCHEMA)
            buffer.add(UnitBatch(Unit(split, start // _ROWS_PER_UNIT), {"embeddings": embeddings}, table))
            buffer.commit()
    session.finish({"seconds": 0.0})
    session.close()


def by_hand(train: torch.Tensor, queries: torch.Tensor, k: int) -> torch.Tensor:
    """[q, k] the nearest rows of train [N, D], both of unit length, a chunk at a time."""
    best, places = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    for start in range(0, len(train), BATCH_ROWS):
        found = (queries @ train[start : start + BATCH_ROWS].T).topk(k)
        best = torch.cat([best, found.values], dim=1)
        places = torch.cat([places, found.indices + start], dim=1)
        best, kept = best.topk(k)
        places = places.gather(1, kept)
    return places


class PeakMemory:
    """The most anonymous memory that this process has while it lasts, beyond what it had before."""

    def __enter__(self) -> Self:
        self.bytes, self._before, self._end = 0, self._now(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.05):
            self.bytes = max(self.bytes, self._now() - self._before)

    @staticmethod
    def _now() -> int:
        return 1024 * int(re.findall(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[0])


def main(
    rows: Annotated[int, typer.Option(help="Rows to learn from.")] = 1_000_000,
    dim: Annotated[int, typer.Option(help="Numbers per row.")] = 512,
    classes: Annotated[int, typer.Option(help="Classes.")] = 100,
    k: Annotated[int, typer.Option("-k", help="Neighbours.")] = 20,
    queries: Annotated[int, typer.Option(help="Rows to predict.")] = 1000,
    threads: Annotated[int, typer.Option(help="Threads.")] = 2,
    rounds: Annotated[int, typer.Option(help="How often both are measured.")] = 3,
    linear: Annotated[bool, typer.Option("--linear", help="Measure the linear probe too, once, at l2 1e-3.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measures both in turn, and prints medians."""
    torch.set_num_threads(threads)
    seconds: dict[str, list[float]] = {"embedx probe": [], "by hand": []}
    memory: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        write_store(store, {"train": rows, "val": queries}, dim, classes)
        config = embedx.ProbeConfig(method="knn", k=k)
        for _ in range(rounds):
            with PeakMemory() as peak:
                seconds["embedx probe"].append(embedx.probe(store, config).seconds)
            memory["embedx probe"] = max(peak.bytes, memory.get("embedx probe", 0))
            train, val = (
                functional.normalize(embedx.open(store).load(split, framework="torch").embeddings)
                for split in ("train", "val")
            )
            start = time.perf_counter()
            by_hand(train, val, k)
            seconds["by hand"].append(time.perf_counter() - start)
            del train, val
        if linear:
            with PeakMemory() as peak:
                result = embedx.probe(store, embedx.ProbeConfig(l2=1e-3))
            seconds[f"embedx probe, linear, {result.epochs} iterations"] = [result.seconds]
            memory[f"embedx probe, linear, {result.epochs} iterations"] = peak.bytes
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["embedx probe"] / medians["by hand"]
    if as_json:
        print(json.dumps({"seconds": medians, "ratio": ratio, "bytes": memory}))
        return
    table = Table("", "seconds", "memory", title=f"{rows:,} x {dim} rows, {queries:,} queries, {threads} threads")
    for name, value in medians.items():
        table.add_row(name, f"{value:.2f}", size_text(memory[name]) if name in memory else "")
    table.add_row("embedx probe / by hand", f"{ratio:.2f}", "")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
