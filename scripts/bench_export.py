"""Megabytes a second of `embedx export`, beside those of `cp` of the store, and the memory that it takes.

A store of random rows is written by the store's own code, with a path and a sha256 per row. Then, in turn: `cp` of the
store with a sync of the copy, as an export is synced too, and an export to each format. Memory is what an export takes
at most of its own (anonymous memory, mapped files left out), sampled while it runs.

    python scripts/bench_export.py --rows 1000000 --dim 256 --to parquet --to npy
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, cast

import pyarrow as pa
import torch
import typer
from rich.console import Console
from rich.table import Table

import embedx
from embedx.store.format.contents import PlanTerms, SplitTerms, StoredRecipe
from embedx.store.format.index import ROW_SCHEMA
from embedx.store.format.layout import Unit
from embedx.store.format.manifest import Manifest
from embedx.store.writing.session import StoreSession
from embedx.store.writing.unit_rows import UnitBatch
from embedx.store.writing.units import UnitBuffer
from embedx.values import size_text
from embedx.vectors.exporting.export_config import FormatName

sys.path.append(str(Path(__file__).parent.parent))
from scripts.bench_probe import PeakMemory


def write_store(out: Path, rows: int, dim: int) -> None:
    """Writes a split of random rows, in shards of 128 MiB."""
    per_unit = 128 * 1024**2 // (4 * dim)
    session = StoreSession.begin(
        out, Manifest(StoredRecipe(), PlanTerms(None, per_unit, splits={"train": SplitTerms(rows)})), "create"
    )
    generator = torch.Generator().manual_seed(0)
    for start in range(0, rows, per_unit):
        numbers = range(start, min(rows, start + per_unit))
        columns: dict[str, Any] = {name: [None] * len(numbers) for name in ROW_SCHEMA.names}
        columns |= {"split": ["train"] * len(numbers), "index": numbers, "status": ["ok"] * len(numbers)}
        columns |= {"key": [f"class-{row % 1000}/image-{row}.jpg" for row in numbers]}
        columns |= {"path": [f"/data/images/class-{row % 1000}/image-{row}.jpg" for row in numbers]}
        columns |= {"sha256": [hashlib.sha256(str(row).encode()).hexdigest() for row in numbers]}
        buffer = UnitBuffer(session.terms)
        vectors = torch.randn(len(numbers), dim, generator=generator)
        table = pa.table(columns, schema=ROW_SCHEMA)
        buffer.add(UnitBatch(Unit("train", start // per_unit), {"embeddings": vectors}, table))
        buffer.commit()
    session.finish({"seconds": 0.0})
    session.close()


def main(
    rows: Annotated[int, typer.Option(help="Rows of the store.")] = 1_000_000,
    dim: Annotated[int, typer.Option(help="Numbers per row.")] = 256,
    to: Annotated[list[str] | None, typer.Option(help="Formats; repeatable.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of which the quickest counts.")] = 1,
    folder: Annotated[Path | None, typer.Option(help="Folder to write in.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measures them in turn, and prints the quickest of the rounds."""
    seconds: dict[str, float] = {}
    processor: dict[str, float] = {}
    memory: dict[str, int] = {}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        store, out = Path(place) / "store", Path(place) / "out"
        write_store(store, rows, dim)
        for _ in range(rounds):
            start = time.perf_counter()
            subprocess.run(["cp", "-r", "--reflink=never", store, out], check=True)
            subprocess.run(["sync", "-f", out], check=True)
            seconds["cp"] = min(time.perf_counter() - start, seconds.get("cp", float("inf")))
            shutil.rmtree(out)
            for name in to or ["parquet", "npy"]:
                begun = time.process_time()
                with PeakMemory() as peak:
                    took = embedx.export(store, out, cast(FormatName, name)).seconds
                seconds[name] = min(took, seconds.get(name, float("inf")))
                processor[name] = min(time.process_time() - begun, processor.get(name, float("inf")))
                memory[name] = max(peak.bytes, memory.get(name, 0))
                shutil.rmtree(out)
    size = rows * dim * 4 / 1e6
    if as_json:
        print(json.dumps({"megabytes": size, "seconds": seconds, "processor_seconds": processor, "bytes": memory}))
        return
    table = Table("", "seconds", "MB/s", "processor", "memory", title=f"{rows:,} x {dim} rows, {size:,.0f} MB")
    for name, value in seconds.items():
        own = (f"{processor[name]:.2f} s", size_text(memory[name])) if name in memory else ()
        table.add_row(name, f"{value:.2f}", f"{size / value:.0f}", *own)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
