"""The steps that measure."""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.gpu.runner import Runner
from scripts.gpu.settings import Bench, Sizes

_SAMPLE_SECONDS = 0.5
_FEATURES_BATCH = 256
_PARTS = ("loader_wait", "copy", "forward", "callbacks", "writer_wait")
"""The parts of the loop, as the manifest's timings name them."""


def measure_end_to_end(runner: Runner, sizes: Sizes, bench: Bench, found: dict[str, Any]) -> None:
    """Measures (d), `embedx extract` from files to a committed store, and what the card does meanwhile."""
    out = runner.work / "measured"
    shutil.rmtree(out, ignore_errors=True)
    options = ["--runtime", bench.runtime, "--decoder", bench.decoder, "--batch-size", str(sizes.batch_size)]
    command = ["end-to-end", "--backbone", bench.backbone, "--precision", bench.precision, *options]
    with _card_sampled(runner, found):
        found |= _bench(runner, *command, "--data", runner.work / "images", "--out", out)


def measure_forward(runner: Runner, sizes: Sizes, bench: Bench, found: dict[str, Any]) -> None:
    """Measures (a), the forward pass alone, by the runtime that (d) took."""
    runtime = runner.found(name_of("d", bench)).get("runtime", bench.runtime)
    found |= _forward(runner, bench, str(runtime), str(sizes.batch_size))


def measure_loading(runner: Runner, sizes: Sizes, bench: Bench, found: dict[str, Any]) -> None:
    """Measures (b), reading, decoding and resizing alone."""
    options = ["--backbone", bench.backbone, "--precision", bench.precision, "--runtime", "eager"]
    options += ["--decoder", bench.decoder, "--batch-size", str(sizes.batch_size)]
    found |= _bench(runner, "loading", *options, "--data", runner.work / "images")
    found["resized as for"] = bench.backbone


def measure_by_hand(runner: Runner, sizes: Sizes, bench: Bench, found: dict[str, Any]) -> None:
    """Measures (e), the loop that people write, in fp32."""
    files = ("--data", runner.work / "some", "--out", runner.work / "by-hand.pt")
    found |= _bench(runner, "by-hand", "--backbone", bench.backbone, *files)


KINDS = {"d": measure_end_to_end, "a": measure_forward, "b": measure_loading, "e": measure_by_hand}
"""The measurements of a bench, in their order: (a) takes the runtime that (d) took."""


def name_of(kind: str, bench: Bench) -> str:
    """Returns the name of the step that measures (a), (b), (d) or (e) of this bench."""
    kinds = {
        "a": f"forward alone: {bench.backbone}, {bench.precision}, runtime of {bench.runtime}",
        "b": f"loading alone: decoder {bench.decoder}",
        "d": f"embedx: {bench.name}",
        "e": f"by hand: {bench.backbone}",
    }
    return kinds[kind]


def relate(runner: Runner, sizes: Sizes, found: dict[str, Any]) -> None:
    """Tells the rates of each bench side by side, with the bound (c) that follows of them, as far as there are any."""
    for bench in sizes.benches:
        rates = {kind: runner.found(name_of(kind, bench)).get("steady") for kind in "abde"}
        a, b, d, e = rates.values()
        if a and b:
            rates["c"] = min(a, b) if sizes.is_card else 1 / (1 / a + 1 / b)
        told: dict[str, Any] = {kind: round(rate, 1) for kind, rate in sorted(rates.items()) if rate}
        if d and "c" in rates:
            told["d / c"] = round(d / rates["c"], 3)
        if d and e:
            told["d / e"] = round(d / e, 2)
        found[bench.name] = told or "not measured"


def tell_auto(runner: Runner, sizes: Sizes, found: dict[str, Any]) -> None:
    """Tells what `--runtime auto` chose in the first bench, and what the manifest says of how long things took."""
    bench = sizes.benches[0]
    measured = runner.found(name_of("d", bench))
    found |= {"bench": bench.name, "chosen": measured["runtime"], "timings": measured["timings"]}


def measure_batch_sizes(runner: Runner, sizes: Sizes, found: dict[str, Any]) -> None:
    """Measures the forward pass alone in batches of several sizes, among them that of `--batch-size auto`."""
    for size in sizes.batch_sizes:
        rate = _forward(runner, sizes.benches[0], "eager", size)
        found[size] = {"images/s": round(rate["steady"], 1), "batch size": rate["batch_size"]}


def measure_loop(runner: Runner, sizes: Sizes, found: dict[str, Any]) -> None:
    """Measures the microseconds that the loop takes for a row where there is nothing to compute."""
    import numpy as np

    rows, out = sizes.feature_rows, runner.work / "copied"
    features = np.random.default_rng(0).standard_normal((rows, 512), dtype=np.float32)
    np.save(runner.work / "features.npy", features)
    command = [sys.executable, "-m", "embedx", "extract", "--backbone", "none"]
    command += ["--batch-size", str(_FEATURES_BATCH)]
    files = ("--data", f"all={runner.work / 'features.npy'}", "--out", out)
    summary = runner.call(*command, *files, "--device", sizes.device, "--json").json
    timings = summary["timings"]
    spent = {part: timings[f"{part}_seconds/all"] for part in _PARTS}
    busy = spent["copy"] + spent["forward"] + spent["callbacks"]
    found |= {
        "rows": rows,
        "rows/s": timings["images_per_second"],
        "microseconds a row, of the main process": round(1e6 * busy / rows, 2),
        "microseconds a row, by part": {part: round(1e6 * seconds / rows, 2) for part, seconds in spent.items()},
        "timings": timings,
    }


def _forward(runner: Runner, bench: Bench, runtime: str, batch_size: str) -> Any:
    options = ["--backbone", bench.backbone, "--precision", bench.precision, "--runtime", runtime]
    return _bench(runner, "forward", *options, "--batch-size", batch_size, "--data", runner.work / "images")


def _bench(runner: Runner, *arguments: str | Path) -> Any:
    return runner.call(sys.executable, "scripts/bench.py", *arguments).json


@contextlib.contextmanager
def _card_sampled(runner: Runner, found: dict[str, Any]) -> Iterator[None]:
    """Has nvidia-smi write down the first card's load and memory meanwhile, where there is one."""
    if shutil.which("nvidia-smi") is None:
        found["card"] = "not sampled: there is no nvidia-smi"
        yield
        return
    query = ("--query-gpu=utilization.gpu,memory.used,power.draw,clocks.sm", "--format=csv,noheader,nounits")
    path = runner.work / "card.csv"
    begin = time.monotonic()
    with path.open("w") as file:
        command = ["nvidia-smi", "--id=0", *query, f"--loop-ms={int(1000 * _SAMPLE_SECONDS)}"]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.kill()
            process.wait()
            found["card"] = samples(path.read_text(), time.monotonic() - begin)


def samples(text: str, seconds: float) -> dict[str, Any]:
    """Returns the columns of what nvidia-smi wrote within so many seconds, and the mean load while there was any."""
    rows = [line.split(", ") for line in text.splitlines() if line.count(", ") == 3]  # the last one may be cut
    if not rows:
        return {"samples": 0}
    loads, memories, powers, clocks = zip(*rows, strict=True)
    known = [float(load) for load in loads if load.isdecimal()]  # and not [N/A]
    return {
        "samples": len(rows),
        "seconds between": round(seconds / len(rows), 2),
        "mean % while not 0": round(statistics.mean(list(filter(None, known)) or [0.0]), 1),
        "%": " ".join(loads),
        "MiB": " ".join(memories),
        "W": " ".join(powers),
        "MHz": " ".join(clocks),
    }
