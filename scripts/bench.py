"""Images per second from files to a committed store, beside what the machine allows.

Measured in turn, several times: the forward pass alone on a resident batch, loading alone (read, decode, resize)
with all cores, and `extract` end to end. Where both share the same cores, as on a CPU, the bound that follows is
1 / (1 / forward + 1 / loading); on a GPU it is the lesser of the two.

    python scripts/bench.py --backbone mobilenet_v3_small --images 500
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from embedx.config import ExtractConfig
from embedx.data.loaders import SplitLoader, default_workers
from embedx.extract import Job, extract, prepare
from embedx.models.runtimes.eager import EagerRuntime
from embedx.processes import keep_large_blocks

_FORWARD_BATCHES = 8


def make_photographs(folder: Path, count: int) -> None:
    """Draws JPEGs of 500 x 375 pixels and about 110 kB: smooth shapes under noise."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        coarse = generator.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = np.clip(smooth + generator.normal(0, 14, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number:06d}.jpg", quality=88)


def forward_rate(job: Job) -> float:
    """Images per second of the forward pass alone, on one resident batch."""
    keep_large_blocks()
    model = EagerRuntime(job.spec.load(), job.device, job.precision)
    size = job.spec.preprocessing.crop
    images = torch.randint(0, 255, (job.batch_size, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    images = images.to(job.device)
    times = []
    for _ in range(_FORWARD_BATCHES):
        start = time.perf_counter()
        model(images)["embeddings"].cpu()
        times.append(time.perf_counter() - start)
    return job.batch_size / statistics.median(times[1:])


def loading_rate(job: Job) -> float:
    """Images per second that the workers read, decode and resize while nothing else runs."""
    split = next(iter(job.plan.splits.values()))
    loader = SplitLoader(
        split,
        [range(len(split))],
        job.spec.preprocessing,
        batch_size=job.batch_size,
        workers=default_workers(),
    )
    batches = iter(loader)
    next(batches)  # the start of the workers is not loading
    start = time.perf_counter()
    images = sum(len(batch["index"]) for batch in batches)
    return images / (time.perf_counter() - start)


def main(
    backbone: Annotated[str, typer.Option(help="Backbone by name.")] = "resnet50",
    data: Annotated[Path | None, typer.Option(help="A folder of images; without it JPEGs are made.")] = None,
    images: Annotated[int, typer.Option(help="How many JPEGs to make.")] = 500,
    rounds: Annotated[int, typer.Option(help="How often everything is measured.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measures forward pass, loading and extraction in turn, and prints medians."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if data is None:
            data = root / "images"
            make_photographs(data, images)
        rates: dict[str, list[float]] = {"forward alone": [], "loading alone": [], "extract, steady": []}
        job: Job | None = None
        for number in range(rounds):
            config = ExtractConfig(
                backbone=backbone, weights="random", data=(f"all={data}",), out=root / f"store-{number}"
            )
            job = prepare(config)
            rates["forward alone"].append(forward_rate(job))
            rates["loading alone"].append(loading_rate(job))
            timings = extract(config).timings
            steady = timings["seconds"] - timings["first_batch_seconds"]
            rates["extract, steady"].append((timings["inputs"] - config.batch_size) / steady)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    forward, loading = medians["forward alone"], medians["loading alone"]
    shared = job is not None and job.device.type == "cpu"
    medians["bound"] = 1 / (1 / forward + 1 / loading) if shared else min(forward, loading)
    medians["extract / bound"] = medians["extract, steady"] / medians["bound"]
    if as_json:
        print(json.dumps({"backbone": backbone, **medians}))
        return
    table = Table("images per second", "median", title=f"{backbone}, {rounds} rounds")
    for name, value in medians.items():
        table.add_row(name, f"{value:.2f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
