"""Measures what the checks of integrity cost: `python scripts/bench_integrity.py FOLDER [EARLIER_CHECKOUT]`.

It prints the seconds of runs with and without them (those of an earlier checkout and of this one in turn), the rate at
which `embedx verify` reads a store beside its bound, the lesser of plain reading and sha256 on every core, and
the seconds of a run with nothing to do.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

ROOT = Path(__file__).parents[1]
FEATURES: list[str | Path] = ["--backbone", "none", "--data"]
MOBILENET: list[str | Path] = ["--backbone", "mobilenet_v3_small", "--weights", "random", "--image-size", "64"]
Variant: TypeAlias = tuple[Path, list[str | Path]]
"""A checkout, and the settings of an extraction."""


def run(checkout: Path, *arguments: str | Path) -> tuple[float, float]:
    """Runs embedx; returns the seconds that it took, and those of its processes' CPU time."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "embedx", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=checkout)
    if done.returncode != 0:
        sys.exit(done.stderr)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare(name: str, variants: dict[str, Variant], out: Path, rounds: int) -> None:
    """Runs variants in turn and prints the medians, also as shares of the first's."""
    taken: dict[str, list[tuple[float, float]]] = {variant: [] for variant in variants}
    for number in range(rounds):
        for variant in sorted(variants, reverse=number % 2 == 1):
            shutil.rmtree(out, ignore_errors=True)
            checkout, arguments = variants[variant]
            taken[variant].append(run(checkout, "extract", *arguments, "--out", out, "--quiet"))
    medians = {variant: tuple(map(statistics.median, zip(*times, strict=True))) for variant, times in taken.items()}
    first = next(iter(medians.values()))
    for variant, (seconds, cpu) in medians.items():
        shares = f"{seconds / first[0]:.3f} and {cpu / first[1]:.3f} of the first"
        print(f"{name}, {variant}: {seconds:.2f} s, CPU {cpu:.2f} s, {shares}", flush=True)


def read(files: list[Path], *, cold: bool) -> float:
    """Reads files by one thread; returns megabytes a second."""
    if cold:
        forget(files)
    started, count, buffer = time.perf_counter(), 0, bytearray(1 << 20)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                count += size
    return count / 1e6 / (time.perf_counter() - started)


def hash_all(files: list[Path], *, cold: bool) -> float:
    """Computes the sha256 of files, a thread for each core; returns megabytes a second."""
    if cold:
        forget(files)
    started = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda path: hashlib.sha256(path.read_bytes()).hexdigest(), files))
    return sum(path.stat().st_size for path in files) / 1e6 / (time.perf_counter() - started)


def forget(files: list[Path]) -> None:
    """Has the system give up what it keeps of these files in memory."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def verify_rate(store: Path, files: list[Path], *, cold: bool) -> float:
    """Verifies a store in this process; returns megabytes a second."""
    from embedx.store.reading.verify import verify

    if cold:
        forget(files)
    started = time.perf_counter()
    if faults := list(verify(store)):
        sys.exit("\n".join(faults))
    return sum(path.stat().st_size for path in files) / 1e6 / (time.perf_counter() - started)


def measure_reading(folder: Path, rounds: int) -> None:
    """Prints verify's rate beside that of plain reading, of 1.6 GB, and the time of a run with nothing to do."""
    import torch
    from safetensors.torch import save_file

    large, store = folder / "large.safetensors", folder / "large"
    if not store.exists():
        save_file({"embeddings": torch.randn(200_000, 2048)}, large)
        run(ROOT, "extract", *FEATURES, large, "--out", store, "--quiet")
    files = sorted(store.rglob("*.safetensors"))
    for cold in (True, False):
        ways = (read, hash_all, lambda files, cold: verify_rate(store, files, cold=cold))
        rates = [[way(files, cold=cold) for way in ways] for _ in range(rounds)]
        plain, hashed, verified = map(statistics.median, zip(*rates, strict=True))
        share = verified / min(plain, hashed)
        print(
            f"{'cold' if cold else 'warm'}: plain {plain:.0f} MB/s, sha256 on every core {hashed:.0f}, "
            f"verify {verified:.0f}, {share:.2f} of the lesser"
        )
    again = [run(ROOT, "extract", *FEATURES, large, "--out", store, "--quiet")[0] for _ in range(rounds)]
    print(f"a run with nothing to do: {statistics.median(again):.2f} s")


def main() -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a folder for stores; it takes 4 GB")
    parser.add_argument("earlier", type=Path, nargs="?", help="a checkout without the checks")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    measure_reading(folder, arguments.rounds)
    import torch
    from safetensors.torch import save_file

    small = folder / "small.safetensors"
    if not small.exists():
        save_file({"embeddings": torch.randn(100_000, 512)}, small)
    runs = {"100,000 features": [*FEATURES, small], "mobilenet_v3_small, 304 images": [*MOBILENET, "-j", "1"]}
    for name, settings in runs.items():
        variants: dict[str, Variant] = {"earlier": (arguments.earlier.resolve(), settings)} if arguments.earlier else {}
        variants |= {"now": (ROOT, settings), "--allow-nonfinite": (ROOT, [*settings, "--allow-nonfinite"])}
        compare(name, variants, folder / "out", arguments.rounds)


if __name__ == "__main__":
    main()
