"""The steps that compare rows and bytes, and that provoke failures."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from scripts.gpu.runner import CheckFailedError, Finished, Runner
from scripts.gpu.settings import Sizes, Way

_COMPARED = "resnet18"
"""The backbone whose rows are compared with those of the plain forward pass, and whose limits these are."""
_FIRST_MAP_BYTES = 3.2e6
"""The bytes that the first convolution of resnet50 writes for one image in fp32."""


class Limit(NamedTuple):
    """The farthest that rows may be from those of the plain forward pass."""

    difference: float
    """The largest difference over the row's largest value."""
    cosine: float
    """The smallest cosine."""

    def and_of(self, other: Limit) -> Limit:
        """Returns how far rows may be that differ for the reasons of both limits."""
        return Limit(max(self.difference, other.difference), min(self.cosine, other.cosine))


SAME_PIXELS = {"fp32": Limit(5e-4, 0.999999), "tf32": Limit(2e-2, 0.9999), "bf16": Limit(1e-1, 0.998)}
"""By precision. On a CPU rows were seen to differ by 4e-6 in fp32, and by 0.026 in bf16 (cosine 0.99995)."""
ROUNDED_PIXELS = Limit(5e-2, 0.9998)
"""Of pixels that may be one level apart, as resizing in float rounds; 0.035 (0.99991) was seen."""
OTHER_PIXELS = Limit(3e-1, 0.98)
"""Of pixels of nvJPEG and those of the CPU, which bring colours to full size in different ways. Other images differ by
0.4 and more (0.965)."""


def make_images(runner: Runner, sizes: Sizes, found: dict[str, Any]) -> None:
    """Draws the JPEGs, and gives them the names and folders that the other steps use."""
    everything = runner.work / "images"
    command = (sys.executable, "scripts/bench.py", "photographs", everything)
    runner.call(*command, "--count", str(sizes.drawn), "--copies", str(sizes.copies))
    names = sorted(os.listdir(everything))
    for folder, count in (("few", sizes.few), ("some/all", sizes.some)):
        (runner.work / folder).mkdir(parents=True)
        for name in names[:count]:
            os.link(everything / name, runner.work / folder / name)
    drawn = [(everything / name).stat().st_size for name in names[: sizes.drawn]]
    found |= {"names": len(names), "drawn": len(drawn), "mean size, kB": round(sum(drawn) / len(drawn) / 1000, 1)}


def run_gpu_tests(runner: Runner, sizes: Sizes, found: dict[str, Any]) -> None:
    """Runs the tests that have the marker `gpu`, of which none may be skipped on a card.

    Raises:
        CheckFailedError: If one fails, is skipped on a card, or none is there.
    """
    files = [path for path in sorted(runner.root.glob("tests/**/test_*.py")) if "pytest.mark.gpu" in path.read_text()]
    command: list[str | Path] = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-rA", "-v"]
    command += ["--durations", "10"]
    command += ["-W", "ignore::pytest.PytestConfigWarning"]  # of a plugin's settings, where the plugin is not installed
    if sizes.is_card and importlib.util.find_spec("xdist"):
        command += ["--numprocesses", "4"]
    ended = runner.call(*command, "--continue-on-collection-errors", *files, codes=range(256))
    found |= outcomes(ended.stdout)
    found["exit code"] = ended.code
    if ended.code != 0 or not files:
        raise CheckFailedError(f"pytest ended with exit code {ended.code}: {ended.stdout.strip().splitlines()[-1:]}")
    if sizes.is_card and found["SKIPPED"]:
        raise CheckFailedError("tests that need a GPU were skipped on one")


def outcomes(told: str) -> dict[str, list[str]]:
    """Returns the tests by what they came to, and the last line, as pytest tells with -rA."""
    kinds = ("PASSED", "FAILED", "ERROR", "SKIPPED")
    lines = told.splitlines()
    found = {kind: [line.partition(" ")[2] for line in lines if line.startswith(f"{kind} ")] for kind in kinds}
    return found | {"summary": lines[-1:]}


def compare_ways(runner: Runner, sizes: Sizes, found: dict[str, Any]) -> None:
    """Compares the rows of every runtime, precision and decoder with those of a plain forward pass of torchvision.

    Raises:
        CheckFailedError: If rows are farther from each other than they may be.
    """
    import numpy as np
    from safetensors.numpy import load_file

    plain = runner.work / "plain"
    plain.mkdir()
    script = Path(__file__).with_name("plain_forward.py")
    runner.call(sys.executable, script, runner.work / "few", plain, _COMPARED, sizes.device.partition(":")[0])
    references = load_file(plain / "plain.safetensors")
    cpu = references["cpu"]
    found["images"] = len(cpu)
    between = np.abs(cpu[1:] - cpu[:-1]).max(axis=1) / np.abs(cpu[1:]).max(axis=1)
    found["difference of two images"] = round(float(np.median(between)), 4)
    if sizes.is_card:
        found["card against CPU, both plain"] = distance(references["card"], cpu, SAME_PIXELS["fp32"])

    compare = partial(_compare_way, runner, sizes.device, references)
    with ThreadPoolExecutor(sizes.at_once) as pool:
        found |= zip([way.name for way in sizes.ways], pool.map(compare, sizes.ways), strict=True)
    wrong = {name: each for name, each in found.items() if isinstance(each, dict) and not each["ok"]}
    if wrong:
        told = [f"{name}: {each.get('why', 'rows are farther off than they may be')}" for name, each in wrong.items()]
        raise CheckFailedError("; ".join(told))


def _compare_way(runner: Runner, device: str, references: Mapping[str, Any], way: Way) -> dict[str, Any]:
    plain = runner.work / "plain"
    out = plain / "-".join(way)
    checkpoint = str(plain / "weights.safetensors")
    options = ["--backbone", _COMPARED, "--checkpoint", checkpoint, "--device", device]
    options += ["--runtime", way.runtime, "--precision", way.precision, "--decoder", way.decoder]
    try:
        _extract(runner, runner.work / "few", out, *options, "--workers", "2", "--batch-size", "16")
        rows = embeddings(out)
    except (CheckFailedError, OSError, ValueError, KeyError) as error:
        return {"ok": False, "why": str(error)}
    limit = SAME_PIXELS[way.precision]
    limits = {"cpu": limit, "card": limit}
    if way.decoder == "cuda":
        limits = {"cpu": OTHER_PIXELS, "card, decoder cuda": limit.and_of(ROUNDED_PIXELS)}
    compared = {
        f"against {name}": distance(rows, references[name], limits[name]) for name in limits if name in references
    }
    return {**compared, "ok": all(each["ok"] for each in compared.values())}


def distance(rows: Any, others: Any, limit: Limit) -> dict[str, Any]:
    """Returns how far rows [N, D] are from others, beside the limit."""
    import numpy as np

    if rows.shape != others.shape:
        return {"ok": False, "why": f"shapes are {rows.shape} and {others.shape}"}
    rows, others = rows.astype(np.float64), others.astype(np.float64)
    difference = float((np.abs(rows - others).max(axis=1) / np.abs(others).max(axis=1)).max())
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(others, axis=1)
    cosine = float(((rows * others).sum(axis=1) / lengths).min())
    return {
        "largest difference / row's largest": float(f"{difference:.3g}"),
        "may be": limit.difference,
        "worst cosine": round(cosine, 8),
        "must be": limit.cosine,
        "ok": difference <= limit.difference and cosine >= limit.cosine,
    }


def embeddings(store: Path) -> Any:
    """Returns the embeddings [N, D] of a store with one split, in the order of its inputs."""
    import numpy as np
    from safetensors.numpy import load_file

    shards = [load_file(path) for path in sorted(store.rglob("*.safetensors"))]
    index = np.concatenate([shard["index"] for shard in shards])
    return np.concatenate([shard["embeddings"] for shard in shards])[np.argsort(index)]


def compare_two_runs(runner: Runner, sizes: Sizes, found: dict[str, Any]) -> None:
    """Compares the bytes of the shards of two runs.

    Raises:
        CheckFailedError: If they differ.
    """
    for name in ("first", "second"):
        _many_units(runner, sizes, runner.work / name)
    found["shards"] = len(digests(runner.work / "first"))
    _check_same_bytes(runner.work / "first", runner.work / "second", found)


def kill_a_run(runner: Runner, sizes: Sizes, found: dict[str, Any]) -> None:
    """Kills a run once two of its units are committed, and compares the bytes that the next run ends with.

    Raises:
        CheckFailedError: If they differ, or the run was not killed midway.
    """
    out = runner.work / "killed"
    units = len(_index_tables(runner.work / "first"))
    started = runner.start(*_many_units_command(sizes, runner.work, out))
    begin = time.monotonic()
    while len(_index_tables(out)) < 2 and started.process.poll() is None and time.monotonic() < begin + 60:
        time.sleep(0.002)
    found["seconds until all its processes had ended"] = round(started.kill(), 2)
    found["units committed at the kill"] = committed = len(_index_tables(out))
    found["units"] = units
    started.collect()
    if not 0 < committed < units:
        raise CheckFailedError(f"{committed} of {units} units were committed at the kill, which tests nothing")
    _many_units(runner, sizes, out)
    _check_same_bytes(runner.work / "first", out, found)


def compare_members(runner: Runner, sizes: Sizes, found: dict[str, Any]) -> None:
    """Compares the bytes of two members on one device with those of one process.

    Raises:
        CheckFailedError: If they differ.
    """
    summary = _many_units(runner, sizes, runner.work / "members", devices=f"{sizes.device},{sizes.device}").json
    found["timings"] = summary["timings"]
    _check_same_bytes(runner.work / "first", runner.work / "members", found)


def exhaust_memory(runner: Runner, sizes: Sizes, found: dict[str, Any]) -> None:
    """Asks for a batch that no memory holds, and follows the advice of the message.

    On the CPU a module takes the card's place that raises torch's error above 20 images.

    Raises:
        CheckFailedError: If there is no such message, or its advice does not help.
    """
    data, out = runner.work / "few", runner.work / "exhausted"
    size, backbone = 30, ["--backbone", "tests.models.backbones.programs:narrow", "--backbone-arg", "fits=20"]
    if sizes.is_card:
        # A batch whose first feature map alone is as large as the card's memory.
        size = math.ceil(runner.found("facts")["cards"][0]["memory"] / _FIRST_MAP_BYTES)
        backbone = ["--backbone", "resnet50", "--weights", "random", "--precision", "fp32"]
    command = [*backbone, "--device", sizes.device, "--workers", "0", "--batch-size"]
    ended = _extract(runner, data, out, *command, str(size), codes=(1, 2))
    messages = [line for line in ended.stderr.splitlines() if line.startswith(("error:", "Traceback"))]
    fitting = advised_batch_size(messages[0]) if messages else None
    found |= {"batch size": size, "exit code": ended.code, "messages": messages, "advised": fitting}
    if fitting is None or len(messages) > 1:
        raise CheckFailedError("it did not end with one message that names a batch size that fits")
    again = _extract(runner, data, out, *command, str(fitting)).json
    found["rows with that size"] = again["rows"]
    if again["rows"] != sizes.few:
        raise CheckFailedError(f"of {sizes.few} images {again['rows']} have a row")


def advised_batch_size(message: str) -> int | None:
    """Returns the batch size that a message about memory advises."""
    match = re.search(r"give --batch-size (\d+)", message)
    return int(match[1]) if match else None


def digests(store: Path) -> dict[str, str]:
    """Returns the sha256 of each shard, by its path in the store."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*.safetensors"))
    }


def _check_same_bytes(one: Path, other: Path, found: dict[str, Any]) -> None:
    first, second = digests(one), digests(other)
    differing = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    found["same bytes"] = bool(first) and not differing
    if not found["same bytes"]:
        raise CheckFailedError(f"{len(differing)} of {len(first)} shards differ: {', '.join(differing[:5])}")


def _index_tables(store: Path) -> list[Path]:
    return list((store / "index").glob("*.parquet"))


def _many_units(runner: Runner, sizes: Sizes, out: Path, devices: str = "") -> Finished:
    return runner.call(*_many_units_command(sizes, runner.work, out, devices))


def _many_units_command(sizes: Sizes, work: Path, out: Path, devices: str = "") -> list[str | Path]:
    settings = ["--backbone", sizes.backbone, "--weights", "random", "--precision", sizes.precision]
    settings += ["--batch-size", str(sizes.small_batch), "--shard-size", sizes.shard_size]
    return _command(work / "some", out, *settings, "--runtime", "eager", "--devices", devices or sizes.device)


def _extract(runner: Runner, data: Path, out: Path, *options: str | Path, codes: Sequence[int] = (0,)) -> Finished:
    shutil.rmtree(out, ignore_errors=True)
    return runner.call(*_command(data, out, *options), codes=codes)


def _command(data: Path, out: Path, *options: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", "embedx", "extract", "--data", f"all={data}", "--out", out, "--json", *options]
