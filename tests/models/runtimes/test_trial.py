"""The runtime that is taken is the fastest one by measure, and what it has computed of the first batches is kept."""

from __future__ import annotations

import itertools
import time

import pytest
import torch
from torch import Tensor

from embedx.models.embedder import Embedder
from embedx.models.runtimes import trial
from embedx.models.runtimes.base import Runtime, largest_batch
from tests.models.runtimes.test_runtimes import CPU, small

LONG = 10**9
"""So many batches that everything pays."""


class Paced(Runtime):
    """Takes a time of its own, and gives the images' first pixels."""

    def __init__(self, embedder: Embedder, name: str, seconds: float) -> None:
        super().__init__(embedder, CPU, "fp32")
        self.name = name  # type: ignore[misc]  # that of one runtime
        self.seconds = seconds
        self.calls = 0

    def compute(self, images: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        time.sleep(self.seconds)
        return {"embeddings": images[:, 0, 0, :1].float()}


def batch(number: int) -> Tensor:
    return torch.full((4, 3, 2, 2), number, dtype=torch.uint8)


def find(first: Paced, *others: Paced | str, batches: int = LONG) -> tuple[trial.Trial, list[str]]:
    """Runs a trial; a name alone is a runtime that does not take the backbone."""
    built: list[str] = []
    known = {other.name: other for other in others if isinstance(other, Paced)}

    def build(name: str) -> Runtime | None:
        built.append(name)
        return known.get(name)

    names = [other if isinstance(other, str) else other.name for other in others]
    return trial.find_fastest(first, 0.01, names, build, batch, batches), built


def of(name: str, seconds: float) -> Paced:
    return Paced(small(), name, seconds)


def test_the_faster_one_wins_and_its_outputs_are_those_of_the_first_batches() -> None:
    first, faster = of("eager", 0.04), of("openvino", 0.004)
    found, built = find(first, faster)
    assert built == ["openvino"] and found.model is faster
    assert [int(outputs["embeddings"][0, 0]) for outputs in found.outputs] == list(range(faster.calls))
    rates = [found.measured[f"trial_images_per_second/{name}"] for name in ("eager", "openvino")]
    assert rates[0] < 4 / 0.04 < rates[1] <= 4 / 0.004
    assert found.measured["trial_seconds"] >= first.calls * 0.04
    assert found.seconds >= faster.calls * 0.004


def test_the_first_one_stays_where_the_others_are_no_faster() -> None:
    first, slower = of("eager", 0.004), of("openvino", 0.04)
    found, built = find(first, slower, "compile")
    assert found.model is first and built == ["openvino", "compile"]
    assert slower.calls == 2  # to warm up, and once more, after which it was given up
    assert [int(outputs["embeddings"][0, 0]) for outputs in found.outputs] == list(range(first.calls))


def test_of_three_the_fastest_wins() -> None:
    middle, fastest = of("openvino", 0.02), of("compile", 0.004)
    found, _ = find(of("eager", 0.05), middle, fastest)
    assert found.model is fastest
    assert {"trial_seconds_to_build/openvino", "trial_seconds_to_build/compile"} < found.measured.keys()


@pytest.mark.parametrize("batches", [1, 2, 60])
def test_a_short_run_tries_nothing_and_computes_nothing_twice(batches: int) -> None:
    first = of("eager", 0.004)
    found, built = find(first, of("openvino", 0.0), batches=batches)
    assert found.model is first and not built and not found.measured
    assert first.calls == len(found.outputs) == min(2, batches)


def test_what_pays_costs_a_twentieth_at_most() -> None:
    assert not trial.pays("openvino", 0.1, 0.1, 259) and trial.pays("openvino", 0.1, 0.1, 261)  # 0.5 + 0.6 + 0.2 s
    assert not trial.pays("compile", 0.1, 0.1, 2_039) and trial.pays("compile", 0.1, 0.1, 2_041)  # 8 + 2 + 0.2 s


@pytest.mark.parametrize(("batches", "calls"), [(500, 3), (LONG, 12)])
def test_runtimes_that_are_alike_are_timed_the_longer_the_longer_the_run(batches: int, calls: int) -> None:
    first, alike = of("eager", 0.2), of("openvino", 0.2)
    found, _ = find(first, alike, batches=batches)
    assert found.model is first and first.calls == alike.calls == calls


def test_a_lead_of_a_few_hundredths_is_none() -> None:
    assert not trial.leads(0.96, 1.0) and trial.leads(0.95, 1.0)


def test_the_first_calls_return_what_was_computed_ahead() -> None:
    model = of("eager", 0.0)
    ahead = trial.AheadOfTheLoop(model, [model(batch(number)) for number in (7, 8)])
    found = [int(ahead(batch(number))["embeddings"][0, 0]) for number in range(4)]
    assert found == [7, 8, 2, 3] and model.calls == 4


def test_a_batch_leaves_a_run_enough_of_them() -> None:
    sizes = [largest_batch(torch.device("cuda"), inputs) for inputs in (0, 1_000, 8_000, 32_768, 10**9)]
    assert sizes == [32, 32, 128, 1024, 1024]
    assert all(small <= large for small, large in itertools.pairwise(sizes))
    assert largest_batch(CPU, 10**9) == 32
