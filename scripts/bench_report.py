"""Seconds, size and peak memory of `embedx report`, on a store of clustered rows whose inputs are small JPEG files.

The store is written by the store's own code. The report is then made by a process of its own, whose anonymous memory
(mapped files left out), with that of the processes that read pictures, is sampled while it runs.

    python scripts/bench_report.py --rows 100000 --dim 512
    python scripts/bench_report.py --rows 1000000 --dim 512 --no-images
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import pyarrow as pa
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from embedx.store.format.contents import PlanTerms, SplitTerms, StoredRecipe
from embedx.store.format.index import ROW_SCHEMA
from embedx.store.format.layout import Unit
from embedx.store.format.manifest import Manifest
from embedx.store.writing.session import StoreSession
from embedx.store.writing.unit_rows import UnitBatch
from embedx.store.writing.units import UnitBuffer
from embedx.values import size_text

_ROWS_PER_UNIT = 65_536
_KINDS = 200
_FOLDER = "photographs-of-a-survey/season-2024/camera-{}/"


def jpegs() -> list[bytes]:
    """Draws pictures of smooth noise, whose files have about 12 kB."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(_KINDS):
        coarse = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((224, 224))
        fine = np.asarray(coarse, np.int16) + generator.integers(-20, 20, (224, 224, 1))
        file = io.BytesIO()
        Image.fromarray(fine.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=80)
        found.append(file.getvalue())
    return found


def write_store(out: Path, images: Path, rows: int, dim: int, classes: int, *, with_files: bool) -> None:
    """Writes a store of rows around one centre per class, in a subspace of their own, with a file per input."""
    plan = PlanTerms(None, _ROWS_PER_UNIT, splits={"train": SplitTerms(rows)})
    session = StoreSession.begin(out, Manifest(StoredRecipe(), plan), "create")
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, dim, generator=generator)
    shapes = torch.randn(classes, 12, dim, generator=generator) / 2
    pictures = jpegs()
    for start in range(0, rows, _ROWS_PER_UNIT):
        numbers = range(start, min(start + _ROWS_PER_UNIT, rows))
        targets = torch.tensor([number * classes // rows for number in numbers])
        inside = torch.randn(len(numbers), 1, 12, generator=generator)
        embeddings = centres[targets] + torch.cat(
            [torch.bmm(part, shapes[own]) for part, own in zip(inside.split(1024), targets.split(1024), strict=True)]
        ).squeeze(1)
        embeddings += 0.2 * torch.randn(len(numbers), dim, generator=generator)
        columns: dict[str, Any] = {name: [None] * len(numbers) for name in ROW_SCHEMA.names}
        keys = [f"{_FOLDER.format(number % 7)}class-{number * classes // rows}/{number:09}.jpg" for number in numbers]
        sums, sizes, paths = [], [], []
        for number in numbers:
            data = pictures[number % _KINDS] + number.to_bytes(8, "little")  # behind the picture's end
            path = images / f"{number:09}.jpg"
            if with_files:
                path.write_bytes(data)
            sums.append(hashlib.sha256(data).hexdigest())
            sizes.append(len(data))
            paths.append(str(path))
        columns |= {"split": ["train"] * len(numbers), "index": numbers, "status": ["ok"] * len(numbers)}
        columns |= {"key": keys, "target": targets.tolist(), "sha256": sums, "bytes": sizes, "path": paths}
        buffer = UnitBuffer(session.terms)
        table = pa.table(columns, schema=ROW_SCHEMA)
        buffer.add(UnitBatch(Unit("train", start // _ROWS_PER_UNIT), {"embeddings": embeddings}, table))
        buffer.commit()
    session.finish({"seconds": 0.0})
    session.close()


def anonymous_bytes(process: psutil.Process) -> int:
    """Returns the anonymous memory of a process and of those that it started."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += 1024 * int(re.findall(r"RssAnon:\s+(\d+)", Path(f"/proc/{each.pid}/status").read_text())[0])
        except (OSError, IndexError):
            continue  # it has ended
    return total


def busy_seconds(process: psutil.Process) -> float:
    """Returns the processor seconds of a process, and of those that it started."""
    try:
        times = process.cpu_times()
        running = [each.cpu_times() for each in process.children(recursive=True)]
    except psutil.Error:
        return 0.0  # one has ended meanwhile
    return sum(each.user + each.system for each in [times, *running]) + times.children_user + times.children_system


def main(
    rows: Annotated[int, typer.Option(help="Rows of the store.")] = 100_000,
    dim: Annotated[int, typer.Option(help="Numbers per row.")] = 512,
    classes: Annotated[int, typer.Option(help="Classes.")] = 100,
    no_images: Annotated[bool, typer.Option("--no-images", help="Write no files, and show no pictures.")] = False,
    compare: Annotated[int, typer.Option(help="Rows that are compared, and laid out.")] = 100_000,
    layout: Annotated[str, typer.Option("--map", help="Layout of the map.")] = "tsne",
    keep: Annotated[Path | None, typer.Option(help="Folder for the store and the report, which stay there.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Makes one report and prints what it took."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if keep is None else keep
        store, images, out = folder / "store", folder / "images", folder / "report.html"
        if not store.exists():
            images.mkdir(parents=True)
            write_store(store, images, rows, dim, classes, with_files=not no_images)
        command = [sys.executable, "-m", "embedx", "report", str(store), "--out", str(out), "--json", "--overwrite"]
        command += ["--compare", str(compare), "--points", str(min(compare, 50_000)), "--map", layout]
        started = time.perf_counter()
        process = subprocess.Popen([*command, *(["--no-images"] if no_images else [])], stdout=subprocess.PIPE)
        watched, peak, busy = psutil.Process(process.pid), 0, 0.0
        while process.poll() is None:
            peak, busy = max(peak, anonymous_bytes(watched)), max(busy, busy_seconds(watched))
            time.sleep(0.1)
        assert process.stdout is not None
        result = json.loads(process.stdout.read())
    result |= {"total_seconds": round(time.perf_counter() - started, 1), "peak_bytes": peak}
    result["busy_seconds"] = round(busy, 1)
    if as_json:
        print(json.dumps(result))
        return
    table = Table("stage", "seconds")
    for stage, seconds in result["seconds"].items():
        table.add_row(stage, f"{seconds:.1f}")
    table.add_row("all, with the start", f"{result['total_seconds']:.1f}")
    table.add_row("of processors, in all", f"{result['busy_seconds']:.1f}")
    Console().print(table)
    Console().print(
        f"{result['rows']:,} rows, {result['points']:,} points, {result['pictures']:,} pictures; "
        f"{result['bytes'] / 1e6:.2f} MB; at most {size_text(peak)} of memory of its own"
    )


if __name__ == "__main__":
    typer.run(main)
