"""System calls that fail in any process of a run: exit code ≠ 0 or the right bytes, and the same command finishes it.

Each failure is drawn from the seed that is told at the start of the tests. One is tried again by
`SOAK_REPLAY="write writer 3 once 28" pytest -m soak tests/soak/test_injected_failures.py -k update`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator

import pytest

from tests.runs import SEED
from tests.soak.runs import Fault
from tests.soak.scenarios import SCENARIOS, Stage

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

PARTS, EACH = 3, 24
"""For each scenario; 432 failures in all, and ten in processes that are started anew."""
TRIES = 3
"""Draws for each failure, as a call may not come to pass: then none is struck."""


def drawn(stage: Stage, chance: random.Random) -> Iterator[Fault]:
    if text := os.environ.get("SOAK_REPLAY"):
        kind, role, number, mode, error = text.split()
        yield Fault(kind, role, int(number), mode, int(error))
        return
    while True:
        yield Fault.draw(chance, stage.calls)


def strike_often(stage: Stage, chance: random.Random, wanted: int, *, anew: bool = False) -> tuple[int, list[str]]:
    """Returns the number of failures and what does not hold after which."""
    struck, faults = 0, []
    for tries, fault in enumerate(drawn(stage, chance)):
        if struck == wanted or tries == TRIES * wanted:
            break
        found = stage.strike(fault, anew=anew)
        struck += found is not None
        faults += [f"SOAK_REPLAY={str(fault)!r}: {text}" for text in found or ()]
    return struck, faults


@pytest.mark.parametrize("part", range(PARTS), ids=lambda part: f"seed-{SEED}-{part}")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_call_that_fails_costs_no_byte(
    stage: Stage, scenario: str, part: int, record_property: Callable[[str, object], None]
) -> None:
    struck, faults = strike_often(stage, random.Random(f"{SEED}-{scenario}-{part}"), EACH)
    record_property("failures injected", struck)
    print(f"{scenario}, seed {SEED}-{scenario}-{part}: {struck} failures injected")
    assert not faults, f"{len(faults)} faults\n" + "\n".join(faults)
    assert struck == EACH or "SOAK_REPLAY" in os.environ


@pytest.mark.parametrize("scenario", ["fresh", "update"])
def test_a_call_that_fails_in_a_process_of_its_own_costs_no_byte(stage: Stage, scenario: str) -> None:
    struck, faults = strike_often(stage, random.Random(f"{SEED}-{scenario}-anew"), 5, anew=True)
    assert not faults, f"{len(faults)} faults\n" + "\n".join(faults)
    assert struck == 5
