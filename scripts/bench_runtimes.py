"""`--runtime auto` beside every fixed runtime: measured rates, and the whole time of runs that follows from them.

    python scripts/bench_runtimes.py measure rates.jsonl     each network in a process of its own
    python scripts/bench_runtimes.py compare rates.jsonl     by the trial's own code, on a clock that is set

A run's time is that of its start, of building the runtime, of the batches' forward passes and of decoding on the same
cores. Rates are of forward passes alone, in turn, medians.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

NETWORKS = (
    "mobilenet_v3_small",
    "resnet50",
    "vit_b_16",
    "resnet18",
    "efficientnet_b0",
    "convnext_tiny",
    "swin_t",
    "mobilenet_v3_large",
    "regnet_y_400mf",
    "densenet121",
    "shufflenet_v2_x1_0",
    "squeezenet1_1",
)
RUNTIMES = ("eager", "openvino", "compile")
_IMAGES = (200, 2_000, 200_000)
_ROUNDS_SECONDS = 10.0
_BATCH = 32
_START_SECONDS = 4.0
"""The seconds from the start of the process to the first runtime, roughly."""
_DECODE_SECONDS = 0.001
"""The seconds in which the cores of a small machine decode an image, roughly."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def network(backbone: str, precision: str) -> None:
    """Prints the seconds of building each runtime, of its first batch and of a later one, as a line of JSON."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does
    from embedx.config import ExtractConfig
    from embedx.errors import RuntimeUnfitError
    from embedx.models.runtimes import choice as runtimes
    from embedx.run.prepare import prepare
    from embedx.system.machine import keep_large_blocks

    keep_large_blocks()
    settings: dict[str, Any] = {"backbone": backbone, "precision": precision, "weights": "random", "runtime": "eager"}
    job = prepare(ExtractConfig(out=Path("nothing"), batch_size=_BATCH, **settings))
    images = job.decoder.empty(_BATCH).random_(0, 256)
    found: dict[str, Any] = {"network": backbone, "precision": precision, "build": {}, "first": {}}
    models: dict[str, Any] = {}

    def seconds_for(name: str) -> float:
        start = time.perf_counter()
        models[name](images)["embeddings"].sum().item()
        return time.perf_counter() - start

    for name in RUNTIMES:
        start = time.perf_counter()
        try:
            models[name] = runtimes.build((name,), job.spec.load, job.device, job.precision, images, print)
        except RuntimeUnfitError as error:
            print(error, file=sys.stderr)
            continue
        found["build"][name] = time.perf_counter() - start
        found["first"][name] = seconds_for(name)
    times: dict[str, list[float]] = {name: [] for name in models}
    start = time.perf_counter()
    while len(times["eager"]) < 5 or time.perf_counter() - start < _ROUNDS_SECONDS:
        for name in models:
            times[name].append(seconds_for(name))
    found["seconds"] = {name: statistics.median(values) for name, values in times.items()}
    print(json.dumps(found))


@app.command()
def measure(out: Path) -> None:
    """Measures all networks in fp32 and bf16, and adds to a file those that it lacks."""
    known = {(one["network"], one["precision"]) for one in _read(out)} if out.exists() else set()
    for precision in ("fp32", "bf16"):
        for backbone in NETWORKS:
            if (backbone, precision) not in known:
                command = [sys.executable, __file__, "network", backbone, precision]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                with out.open("a") as file:
                    file.write(done.stdout.splitlines()[-1] + "\n")


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@app.command()
def compare(rates: Path) -> None:
    """Prints the whole time of each runtime and of auto, and the ratio of auto's to the best."""
    table = Table("network", "", "images", *RUNTIMES, "auto", "takes", "auto / best")
    ratios: dict[int, list[float]] = {count: [] for count in _IMAGES}
    for one in _read(rates):
        for count in _IMAGES:
            batches = math.ceil(count / _BATCH)
            rest = _START_SECONDS + count * _DECODE_SECONDS
            fixed = {
                name: rest + one["build"][name] + one["first"][name] + (batches - 1) * one["seconds"][name]
                for name in one["seconds"]
            }
            winner, seconds = _auto(one, batches)
            ratios[count].append((rest + seconds) / min(fixed.values()))
            cells = [f"{fixed[name]:,.1f}" if name in fixed else "-" for name in RUNTIMES]
            ratio = f"{ratios[count][-1]:.3f}"
            table.add_row(
                one["network"], one["precision"], f"{count:,}", *cells, f"{rest + seconds:,.1f}", winner, ratio
            )
    console = Console(width=120)
    console.print(table)
    for count, values in ratios.items():
        console.print(f"{count:,} images: {max(values):.3f} at worst, {statistics.median(values):.3f} in the median")


def _auto(one: dict[str, Any], batches: int) -> tuple[str, float]:
    """Runs the trial by measured rates; returns the winner, and the seconds of building and of all batches."""
    import torch

    from embedx.models.runtimes import trial

    class Clock:
        now = 0.0

        def perf_counter(self) -> float:
            return self.now

    clock = Clock()

    class Simulated:
        device = torch.device("cpu")

        def __init__(self, name: str) -> None:
            clock.now += one["build"][name]
            self.name = name
            self._seconds = _first_then(one["first"][name], one["seconds"][name])

        def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            clock.now += next(self._seconds)
            return {"embeddings": images}

    vars(trial)["time"] = clock
    first: Any = Simulated("eager")
    others = [name for name in RUNTIMES[1:] if name in one["seconds"]]
    build: Any = Simulated
    image = torch.zeros(1)
    found = trial.find_fastest(first, clock.now, others, build, lambda number: image, batches)
    return found.model.name, clock.now + max(0, batches - len(found.outputs)) * one["seconds"][found.model.name]


def _first_then(first: float, later: float) -> Iterator[float]:
    yield first
    while True:
        yield later


if __name__ == "__main__":
    app()
