"""How planning, a rerun with nothing to do, many groups and the writer scale, each in a process of its own.

python scripts/bench_scale.py plan 10000 100000 1000000      files in folders of a thousand
python scripts/bench_scale.py table 1000000 10000000         rows of a Parquet table
python scripts/bench_scale.py rerun 10000 100000 1000000     `embedx extract` on a complete store
python scripts/bench_scale.py memory 10000 100000            all processes of a run, at their peak
python scripts/bench_scale.py groups 100000                  groups of ten rows each
python scripts/bench_scale.py writer                         rows from memory, beside the disk's own rate with fsync
python scripts/bench_scale.py journal                        the same through the writer process, with and without
python scripts/bench_scale.py features                       rows of a feature file, beside `cp` of it with fsync
python scripts/bench_scale.py members                        what it costs to hand out units, to members that sleep
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import typer
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save_file

from embedx.callbacks.rows_table import rows_table
from embedx.callbacks.writer import EmbeddingsWriter
from embedx.config import ExtractConfig
from embedx.distribute.unit_queue import UnitQueue
from embedx.engine.state import new_state
from embedx.run.inputs import list_inputs
from embedx.run.prepare import prepare
from embedx.store.format.contents import PlanTerms, SplitTerms, StoredRecipe
from embedx.store.format.layout import Unit
from embedx.store.format.manifest import Manifest
from embedx.store.writing.process import WriterProcess
from embedx.store.writing.session import StoreSession
from embedx.store.writing.unit_journal import JOURNAL_SECONDS
from embedx.store.writing.unit_rows import UnitBatch
from embedx.store.writing.units import UnitBuffer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Counts = Annotated[list[int], typer.Argument(help="How many inputs.")]
Folder = Annotated[Path | None, typer.Option(help="Where to work; it should be on the disk in question.")]

_PIXELS = b"P6 8 8 255\n"
_DIM = 2048
_BATCHES = 256
"""The number of batches in a unit."""
_FILES = 100_000
"""That rows of a table name together; making more would take longer than listing them."""


def make_images(root: Path, count: int) -> Path:
    """Images of 8 x 8 pixels, no two alike, a thousand to a folder."""
    for number in range(count):
        folder = root / f"{number // 1000:04d}"
        if number % 1000 == 0:
            folder.mkdir(parents=True)
        color = bytes((number % 256, number // 256 % 256, number // 65536 % 256))
        (folder / f"{number:07d}.ppm").write_bytes(_PIXELS + color * 64)
    return root


def settings(root: Path, out: Path) -> list[str]:
    """The backbone is the image itself, so that all else can be seen."""
    chosen = {"backbone": "torch.nn:Flatten", "image-size": "8", "mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5"}
    chosen |= {"data": f"all={root}", "out": str(out), "batch-size": "256"}
    return [text for name, value in chosen.items() for text in (f"--{name}", value)]


def alone(*arguments: str) -> tuple[float, int]:
    """Seconds and peak memory, in bytes, of a Python process and those that it starts, at one time."""
    process = psutil.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    start, peak = time.perf_counter(), 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            total = 0
            with contextlib.suppress(psutil.Error):  # one of them has just ended
                for each in (process, *process.children(recursive=True)):
                    total += each.memory_full_info().pss
            peak = max(peak, total)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    if code != 0:
        raise SystemExit(f"{arguments} ended with {code}")
    return seconds, peak


def report(title: str, columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    """Prints a table."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(
            *(
                f"{value:,.4g}" if isinstance(value, float) else value if isinstance(value, str) else f"{value:,}"
                for value in row
            )
        )
    Console().print(table)


@app.command("list", hidden=True)
def list_only(sources: list[str], key_column: Annotated[str | None, typer.Option()] = None) -> None:
    """Lists one source after the other, and prints inputs and seconds of the last one, and the memory at most.

    The first ones are there so that what is imported, and allocated once, does not count.
    """
    for source in sources:
        start = time.perf_counter()
        config = ExtractConfig(
            backbone="resnet18", data=(f"all={source}",), out=Path("/nowhere"), key_column=key_column
        )
        plan = list_inputs(config)
        seconds = time.perf_counter() - start
    print(len(plan.splits["all"]), seconds, _peak())


def _peak() -> int:
    """The most memory that this process has had, in bytes; `getrusage` counts that of its parent too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def planning(title: str, sources: dict[int, Path], *options: str) -> None:
    """Measures the listing of each source in a process of its own, behind that of the smallest."""
    rows: list[tuple[object, ...]] = []
    for count, source in sources.items():
        command = [sys.executable, __file__, "list", str(sources[min(sources)]), str(source), *options]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found, seconds, peak = map(float, printed.split())
        if found != count:
            raise SystemExit(f"{found} inputs were listed, and there are {count}")
        rows.append((count, seconds, seconds / count * 1e6, peak / 1e6))
    report(title, ("inputs", "seconds", "µs each", "MB at the peak"), rows)


@app.command()
def plan(counts: Counts, folder: Folder = None) -> None:
    """Lists files."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        planning("listing files", {count: make_images(Path(place, str(count)), count) for count in counts})


@app.command()
def table(counts: Counts, folder: Folder = None) -> None:
    """Lists rows of a table, each with a key of its own; together they name no more files than can be made quickly."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        images = make_images(Path(place, "images"), min(_FILES, *counts))
        paths = pa.array([str(path.relative_to(place)) for path in images.rglob("*.ppm")])
        sources = {}
        for count in counts:
            numbers = pa.array(range(count))
            keys = pc.binary_join_element_wise("row-", numbers.cast(pa.string()), "")
            rows = {"key": keys, "path": paths.take(pa.array(np.arange(count) % len(paths))), "label": numbers}
            sources[count] = Path(place, f"{count}.parquet")
            pq.write_table(pa.table(rows), sources[count])
        planning("listing rows of a table", sources, "--key-column", "key")


@app.command()
def rerun(counts: Counts, folder: Folder = None) -> None:
    """Runs `embedx extract` where nothing is to be done."""
    rows: list[tuple[object, ...]] = []
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for count in counts:
            root, out = make_images(Path(place, f"images-{count}"), count), Path(place, f"store-{count}")
            backbone = ["--backbone", "mobilenet_v3_small", "--weights", "random"]
            arguments = [*backbone, "--data", f"all={root}", "--out", str(out)]
            config = ExtractConfig(backbone="mobilenet_v3_small", weights="random", data=(f"all={root}",), out=out)
            _fill(config)
            seconds, peak = alone("-m", "embedx", "extract", *arguments)
            rows.append((count, seconds, seconds / count * 1e6, peak / 1e6))
    report("a rerun with nothing to do", ("inputs", "seconds", "µs each", "MB at the peak"), rows)


def _fill(config: ExtractConfig) -> None:
    """Makes the store that an extraction would make, but for what is in it."""
    job = prepare(config)
    session = StoreSession.begin(config.out, job.manifest, "create")
    dim = job.spec.shapes["embeddings"][0]
    writer = EmbeddingsWriter(config.out, dataloader_idx_map={0: "all"}, session=session)
    writer.setup()
    state = new_state()
    (split,) = job.plan.splits.values()
    vectors = torch.zeros(job.rows_per_unit, dim)
    nothing = torch.nn.Identity()
    for rows in split.unit_rows(job.rows_per_unit):
        own = split.table.slice(rows.start, len(rows))
        batch = {
            "index": torch.arange(rows.start, rows.stop),
            "keys": own["key"].to_pylist(),
            "paths": [path.decode() for path in own["path"].to_pylist()],
            "mtime_ns": own["mtime_ns"].to_pylist(),
            "bytes": own["size"].to_pylist(),
            "metadata": {name: own[name].combine_chunks() for name in split.metadata},
        }
        writer.on_test_batch_end(state, nothing, {"embeddings": vectors[: len(rows)]}, batch, 0, 0)
    writer.on_test_epoch_end(state, nothing)
    session.close()


@app.command()
def memory(counts: Counts, folder: Folder = None) -> None:
    """Runs an extraction."""
    rows: list[tuple[object, ...]] = []
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for count in counts:
            root = make_images(Path(place, f"images-{count}"), count)
            seconds, peak = alone("-m", "embedx", "extract", *settings(root, Path(place, f"store-{count}")))
            rows.append((count, seconds, count / seconds, peak / 1e6))
    report("an extraction", ("inputs", "seconds", "inputs/s", "MB of all processes"), rows)


def _units(root: Path, units: int, rows_per_unit: int, dim: int, rows_per_group: int | None) -> float:
    """Seconds in which units of rows from memory are committed, in this process."""
    total = units * rows_per_unit
    plan = PlanTerms("slide" if rows_per_group else None, rows_per_unit, splits={"all": SplitTerms(total)})
    session = StoreSession.begin(root, Manifest(StoredRecipe.from_json({"name": "bench"}), plan), "create")
    vectors = torch.randn(rows_per_unit, dim)
    buffer = UnitBuffer(session.terms)
    seconds = 0.0
    for unit in range(units):
        index = torch.arange(unit * rows_per_unit, (unit + 1) * rows_per_unit)
        groups = [f"group-{row // rows_per_group:06d}" for row in index.tolist()] if rows_per_group else None
        batch = {
            "index": index,
            "keys": [f"images/{row}.jpg" for row in index.tolist()],
            "sha256": [f"{row:064x}" for row in index.tolist()],
            "metadata": {"slide": groups} if groups else {},
        }
        rows = rows_table(batch, "all", "slide" if groups else None)
        start = time.perf_counter()
        buffer.add(UnitBatch(Unit("all", unit), {"embeddings": vectors}, rows))
        buffer.commit()
        seconds += time.perf_counter() - start
    session.close()
    return seconds


@app.command()
def groups(count: int = 100_000, folder: Folder = None) -> None:
    """Writes groups of ten rows, in units of a thousand groups, and as many folders with a plain file in each."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        seconds = _units(Path(place, "store"), max(1, count // 1000), min(count, 1000) * 10, 64, 10)
        (shard,) = next(Path(place, "store", "all").iterdir()).iterdir()
        bare = _bare_files(Path(place, "bare"), count, shard.read_bytes())
    columns = ("groups", "seconds", "groups/s", "bare folders and files/s", "ratio")
    report("many small groups", columns, [(count, seconds, count / seconds, count / bare, bare / seconds)])


def _bare_files(root: Path, count: int, data: bytes) -> float:
    """Seconds in which the file system makes folders with a renamed file in each, and brings all to disk."""
    root.mkdir()
    start = time.perf_counter()
    for number in range(count):
        group = f"{root}/group-{number:06d}"
        os.mkdir(group)
        with open(f"{group}/temporary", "xb") as file:
            file.write(data)
        os.rename(f"{group}/temporary", f"{group}/000000.safetensors")
    os.sync()
    return time.perf_counter() - start


@app.command()
def writer(folder: Folder = None, units: int = 8, rounds: int = 5) -> None:
    """Writes shards of 128 MiB, and in turn files of the same size."""
    rows = 128 * 1024**2 // (_DIM * 4)
    own, disk = [], []
    data = os.urandom(128 * 1024**2)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for number in range(rounds):
            own.append(units * len(data) / _units(Path(place, f"store-{number}"), units, rows, _DIM, None))
            start = time.perf_counter()
            for unit in range(units):
                with Path(place, f"plain-{number}-{unit}").open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            disk.append(units * len(data) / (time.perf_counter() - start))
            subprocess.run(["rm", "-r", *map(str, Path(place).iterdir())], check=True)
    a, b = statistics.median(own) / 1e6, statistics.median(disk) / 1e6
    report(f"the writer, D = {_DIM} fp32", ("writer MB/s", "disk MB/s with fsync", "ratio"), [(a, b, a / b)])


@app.command()
def journal(folder: Folder = None, units: int = 8, rounds: int = 9, rows: int = 64, dim: int = 512) -> None:
    """Puts small batches through the writer process: without journals, with them, and with all rows journalled too."""
    ages = {"none": None, "units are quicker": JOURNAL_SECONDS, "each row is journalled": 0.0}
    seconds: dict[str, list[float]] = {name: [] for name in ages}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for number in range(rounds):
            for name, age in ages.items() if number % 2 else reversed(ages.items()):
                seconds[name].append(_through_process(Path(place, "store"), units, rows, dim, age))
                subprocess.run(["rm", "-r", str(Path(place, "store"))], check=True)
    plain = seconds["none"]
    report(
        f"{units} units of {_BATCHES} batches of {rows} rows, D = {dim} fp32",
        ("journals", "seconds, median", "seconds, best", "rate, median of the rounds' ratios"),
        [
            (name, statistics.median(own), min(own), statistics.median(a / b for a, b in zip(plain, own, strict=True)))
            for name, own in seconds.items()
        ],
    )


def _through_process(root: Path, units: int, rows: int, dim: int, age: float | None) -> float:
    """Seconds from the first batch to the end of the writer process."""
    total = units * _BATCHES * rows
    plan = PlanTerms(None, _BATCHES * rows, splits={"all": SplitTerms(total)})
    session = StoreSession.begin(root, Manifest(StoredRecipe.from_json({"name": "bench"}), plan), "create")
    tensors = {"embeddings": torch.randn(rows, dim)}
    tables = []
    for start in range(0, total, rows):
        keys = [f"images/{row}.jpg" for row in range(start, start + rows)]
        tables.append(rows_table({"index": torch.arange(start, start + rows), "keys": keys}, "all", None))
    process = WriterProcess(session.terms._replace(journal_seconds=age), tensors)
    process.put(UnitBatch(Unit("all", 0), tensors, tables[0]))
    time.sleep(1)  # it has started then
    start_time = time.perf_counter()
    for number, table in enumerate(tables[1:], 1):
        process.put(UnitBatch(Unit("all", number // _BATCHES), tensors, table))
    process.close()
    seconds = time.perf_counter() - start_time
    session.close()
    return seconds


@app.command()
def features(
    folder: Folder = None,
    rows: Annotated[int, typer.Option(help="How many rows of 512 numbers in fp32.")] = 200_000,
    rounds: int = 3,
    kind: Annotated[str, typer.Option(help="npy, safetensors or single: a file for each row.")] = "npy",
) -> None:
    """Extracts features, in turn with `cp`; the CPU time of a row is what it takes beyond a run of few rows."""
    found: dict[str, list[float]] = {}
    few = 4096
    with tempfile.TemporaryDirectory(dir=folder) as place:
        sources = {count: _make_features(Path(place, f"{count}"), count, kind) for count in (few, rows)}
        for _ in range(rounds):
            start = time.perf_counter()
            subprocess.run(["cp", "-r", str(sources[rows]), f"{place}/copy"], check=True)
            for copy in (path for path in (Path(place, "copy"), *Path(place, "copy").rglob("*")) if path.is_file()):
                with copy.open("rb") as file:
                    os.fsync(file.fileno())
            copied = rows / (time.perf_counter() - start)
            (_, before), (timings, spent) = (_extract_features(sources[count], Path(place, "out")) for count in sources)
            rate = timings["inputs"] / (timings["seconds"] - timings["first_batch_seconds"])
            own = {"rows/s": rate, "cp rows/s": copied, "share of cp": rate / copied}
            own |= {f"{name}, µs a row": (spent[name] - before[name]) / (rows - few) * 1e6 for name in sorted(spent)}
            for name, value in own.items():
                found.setdefault(name, []).append(value)
            subprocess.run(["rm", "-r", f"{place}/copy"], check=True)
    report(f"{rows} rows, {kind}", tuple(found), [tuple(map(statistics.median, found.values()))])


def _make_features(place: Path, count: int, kind: str) -> Path:
    numbers = np.random.default_rng(count).standard_normal((count, 512), dtype=np.float32)
    if kind == "single":
        place.mkdir()
        for number, row in enumerate(numbers):
            np.save(place / f"{number:07d}.npy", row)
        return place
    path = place.with_suffix(f".{kind}")
    np.save(path, numbers) if kind == "npy" else save_file({"embeddings": numbers}, path)
    return path


def _extract_features(source: Path, out: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Extracts features; returns the manifest's timings, and the CPU time of the processes by kind."""
    arguments = ["extract", "--backbone", "none", "--data", f"all={source}", "--out", str(out), "--quiet"]
    process = psutil.Popen([sys.executable, "-m", "embedx", *arguments], stdout=subprocess.DEVNULL)
    seen: dict[int, tuple[str, float]] = {}
    while process.poll() is None:
        with contextlib.suppress(psutil.Error, OSError):
            for each in (process, *process.children(recursive=True)):
                name = "main" if each == process else Path(f"/proc/{each.pid}/comm").read_text().strip()
                seen[each.pid] = name, sum(each.cpu_times()[:2])
        time.sleep(0.005)
    spent = dict.fromkeys(("main", "embedx-loader", "embedx-writer"), 0.0)
    for name, seconds in seen.values():
        if name in spent:
            spent[name] += seconds
    timings: dict[str, float] = json.loads((out / "manifest.json").read_text())["timings"]
    subprocess.run(["rm", "-r", str(out)], check=True)
    return timings, spent


@app.command("members")
def members_only(
    members: Annotated[int, typer.Option(help="How many members.")] = 1024,
    units: Annotated[int, typer.Option(help="How many units.")] = 1_000_000,
    seconds: Annotated[float, typer.Option(help="How long a unit takes in the middle.")] = 30.0,
    dying: Annotated[float, typer.Option(help="The share of the members that die on the way.")] = 0.01,
) -> None:
    """Simulates the members in a time of its own, in which they sleep, with the queue that hands out units."""
    chance = random.Random(0)
    before = psutil.Process().memory_info().rss
    queue = UnitQueue({Unit("all", number): 1 for number in range(units)})
    speeds: dict[str, float] = {}
    events: list[tuple[float, str, Unit | None]] = []
    spent = 0.0
    calls = 0

    def join(now: float) -> None:
        name = f"member {len(speeds)}"
        speeds[name] = seconds * 2 ** chance.uniform(-1, 1)  # spread by a factor of four
        queue.join(name, now)
        heapq.heappush(events, (now, name, None))

    for _ in range(members):
        join(0.0)
    total = units * seconds / members
    deaths = {f"member {number}": chance.uniform(0, total) for number in range(int(dying * members))}
    idle: dict[str, float] = {}
    end = twice = 0.0
    while not queue.is_done:
        now, name, unit = heapq.heappop(events)
        begun = time.process_time()
        if now >= deaths.get(name, now + 1):
            queue.lose(name)
            join(now + 60.0)
        else:
            if unit is not None:
                twice += unit not in queue.open
                queue.advance(name, 1, now)
                queue.commit(name, unit, now)
            taken = queue.take(name, None, now)
            if taken is None:
                idle.setdefault(name, now)
            wait = 1.0 if taken is None else speeds[name]
            heapq.heappush(events, (now + wait, name, taken))
        spent += time.process_time() - begun
        calls += 1
        end = now
    grown = psutil.Process().memory_info().rss - before
    asleep = sum(end - since for since in idle.values()) / members
    report(
        f"{members:,} members, {units:,} units of {seconds:g} s, {len(deaths)} deaths",
        ("run, h", "driver, CPU-s", "share of a core", "idle at the end, s", "computed twice", "memory, MB"),
        [(end / 3600, spent, spent / end, asleep, int(twice), grown / 1e6)],
    )


if __name__ == "__main__":
    app()
