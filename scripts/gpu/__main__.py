"""Checks and measures all that needs a GPU, in one go and without a network: scripts/gpu.sh OUT [--cpu].

OUT gets result.json, written anew after every step, and log.txt, with all that the commands print. No step's failure
ends it, and each has its limit of time; those for which none is left are named. Packages that are not installed are
taken from wheels in .whl/. --cpu tries the check itself in a few minutes on two cores. The exit code is 1 if a step
failed, and 0 if not, though some may have been skipped.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from scripts.gpu import correctness, machine, rates
from scripts.gpu.runner import Runner, Step
from scripts.gpu.settings import CARD, CPU, Bench, Sizes

ROOT = Path(__file__).resolve().parents[2]
_FIRST = "same bytes by two runs"
_SECONDS = {"d": (75, 20), "a": (75, 15), "b": (45, 15), "e": (45, 15)}
"""The limit of each step of a bench, and the seconds that have to be left for it."""


def steps_of(runner: Runner, sizes: Sizes) -> Iterator[Step]:
    """Yields all steps, the most telling first, as those at the end are cut off where time is short.

    The limits are those of a card.
    """

    def given(*names: str) -> Callable[[], str]:
        return lambda: obstacle(runner, sizes) or lacking(runner, *names)

    def both(function: Callable[..., None]) -> Callable[..., None]:
        return partial(function, runner, sizes)

    def benches(some: Sequence[Bench]) -> Iterator[Step]:
        for bench in some:
            for kind, function in rates.KINDS.items():
                limit, least = _SECONDS[kind]
                name = rates.name_of(kind, bench)
                yield Step(name, partial(function, runner, sizes, bench), limit, least, given("images"))

    yield Step("packages", partial(machine.add_packages, runner), 30, always=True)
    yield Step("facts", partial(machine.tell_facts, runner, needs_card=sizes.is_card), 60, always=True)
    yield Step("images", both(correctness.make_images), 60, obstacle=given(), always=True)
    yield Step(
        "tests", both(correctness.run_gpu_tests), 120, 30, lambda: given()() or machine.obstacle_of_tests(runner)
    )
    yield Step("rows of the plain forward pass", both(correctness.compare_ways), 120, 30, given("images"))
    yield Step(_FIRST, both(correctness.compare_two_runs), 60, 20, given("images"))
    yield Step("same bytes after a kill", both(correctness.kill_a_run), 60, 20, given(_FIRST))
    yield Step("same bytes by two members", both(correctness.compare_members), 60, 20, given(_FIRST))
    yield Step("out of memory", both(correctness.exhaust_memory), 90, 30, given("images"))
    yield from benches(sizes.benches[:1])
    yield Step("runtime auto", both(rates.tell_auto), 5, 0, given(rates.name_of("d", sizes.benches[0])))
    yield Step("the loop alone", both(rates.measure_loop), 45, 15, given())
    yield Step("batch sizes", both(rates.measure_batch_sizes), 80, 30, given("images"))
    yield from benches(sizes.benches[1:])
    yield Step("rates side by side", both(rates.relate), 5, -math.inf)


def obstacle(runner: Runner, sizes: Sizes) -> str:
    """Returns the reason why nothing can be run, or an empty text."""
    unmet = runner.found("packages").get("unmet", {})
    if missing := [name for name, state in unmet.items() if state == machine.MISSING]:
        return f"packages are missing: {', '.join(missing)}"
    if sizes.is_card and runner.found("facts").get("cards") == []:
        return "torch sees no CUDA device"
    return ""


def lacking(runner: Runner, *names: str) -> str:
    """Returns a text that names those of these steps that did not end well, or an empty one."""
    states = {name: runner.result["steps"].get(name, {}).get("status") for name in names}
    return ", ".join(f"it needs the step {name!r}: {state}" for name, state in states.items() if state != "ok")


def chosen(steps: Sequence[Step], only: Sequence[str]) -> list[Step]:
    """Returns each step once, or of them those whose names hold one of these texts, and those that others need."""
    once: dict[str, Step] = {}
    for step in steps:
        if step.always or not only or any(text in step.name for text in only):
            once.setdefault(step.name, step)
    return list(once.values())


def main() -> int:
    """Runs the check, and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder of result.json and log.txt")
    parser.add_argument("--cpu", action="store_true", help="try the check itself on the CPU, with little of everything")
    parser.add_argument("--seconds", type=float, default=540, help="how long all may take (default: 540)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="TEXT", help="run the steps with this in the name"
    )
    arguments = parser.parse_args()
    sizes = CPU if arguments.cpu else CARD
    work = Path(tempfile.mkdtemp(prefix="embedx-gpu-"))
    runner = Runner(arguments.out.resolve(), work, ROOT, arguments.seconds)
    runner.stop_at_signals()
    runner.environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0") if sizes.is_card else ""
    steps = chosen([*steps_of(runner, sizes)], arguments.only)
    if arguments.cpu:  # which may be busy with other things
        steps = [dataclasses.replace(step, limit=3 * step.limit) for step in steps]
    try:
        all_well = runner.run(steps)
    finally:
        runner.close()
        shutil.rmtree(work, ignore_errors=True)
    counts = Counter(entry["status"] for entry in runner.result["steps"].values())
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    print(f"{told}, in {runner.result['seconds']:.0f} s; details: {arguments.out / 'result.json'}, log.txt beside it")
    return 0 if all_well else 1


if __name__ == "__main__":
    sys.exit(main())
