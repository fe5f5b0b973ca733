"""The choice of the fastest runtime, by running the first batches through each that may pay."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from embedx.models.runtimes.base import Runtime

_BUILD_SECONDS = {"openvino": (0.5, 6.0), "compile": (8.0, 20.0)}
"""The seconds, roughly, that building a runtime takes: so many, and a multiple of those that eager mode takes.

Of seven networks on two cores of an AMD EPYC, eager mode took 0.1 to 0.6 s, OpenVINO 0.4 to 7.0, and compile 5 to 15.
"""
LARGEST_COST = 0.05
"""The share of a run's time that trying a runtime may cost where it loses."""
_LEAD = 1.05
"""The ratio of speeds from which on another runtime is taken, and not the one that needs no building."""
_HOPELESS = 1.2
"""The ratio of times from which on a runtime is given up at once; single batches vary by less."""
_BATCHES_AT_RISK = 2
"""The batches that a runtime computes in vain if it is clearly slower: one to warm up, and one more."""
SHORTEST_RUN = round(_BATCHES_AT_RISK / LARGEST_COST)
"""The batches of the shortest run in which trying may pay."""
_FEWEST_BATCHES, _MOST_BATCHES = 3, 12
"""The batches that a runtime computes which is not clearly slower; the longer the run, the more."""
_SHARE = 0.002
"""The share of the rest of a run that more than the fewest batches may take."""


class Trial(NamedTuple):
    """The result of a trial."""

    model: Runtime
    """The runtime to go on with."""
    outputs: list[dict[str, Tensor]]
    """Its outputs for the first batches."""
    seconds: float
    """The time that this has taken."""
    measured: dict[str, float]
    """The images per second of each runtime by `trial_images_per_second/NAME`, the seconds of building it by
    `trial_seconds_to_build/NAME`, and those of the whole trial, but for what counts, by `trial_seconds`."""


def pays(name: str, eager_build_seconds: float, batch_seconds: float, batches: int) -> bool:
    """Tells whether trying a runtime costs little beside the whole run, so that it may well lose.

    Args:
        name: The runtime to try.
        eager_build_seconds: The seconds that building eager mode took.
        batch_seconds: The seconds that the fastest one so far takes for a batch.
        batches: The number of batches that are left.
    """
    fixed, multiple = _BUILD_SECONDS[name]
    cost = fixed + multiple * eager_build_seconds + _BATCHES_AT_RISK * batch_seconds
    return cost <= LARGEST_COST * batches * batch_seconds


def leads(batch_seconds: float, best: float) -> bool:
    """Tells whether a runtime that takes so many seconds for a batch is clearly faster than the best one so far."""
    return batch_seconds * _LEAD < best


def find_fastest(
    first: Runtime,
    first_build_seconds: float,
    others: Sequence[str],
    build: Callable[[str], Runtime | None],
    batch: Callable[[int], Tensor],
    batches: int,
) -> Trial:
    """Runs the first batches through a runtime, and through others that pay if they are faster.

    They take turns with the best one so far, on three batches at least; one that is clearly slower is given up at once.

    Args:
        first: The runtime to begin with, which needs little building.
        first_build_seconds: The seconds that this took.
        others: The names of the others, the one first that is quickest to build.
        build: Builds a runtime; None if it does not take the backbone or the memory.
        batch: Gives the batch of a number from 0 on, [B, 3, H, W] uint8; they may repeat.
        batches: The number of batches of the run.
    """
    started = time.perf_counter()
    best = _Timed(first, batch)
    measured: dict[str, float] = {}
    for _ in range(min(2, batches)):
        best.run()
    for name in others:
        left = batches - len(best.outputs)
        if not pays(name, first_build_seconds, best.typical, left):
            break
        build_started = time.perf_counter()
        model = build(name)
        measured[f"trial_seconds_to_build/{name}"] = time.perf_counter() - build_started
        if model is None:
            continue
        other = _Timed(model, batch)
        other.run()
        other.run()
        enough = _SHARE * left * best.typical
        while other.typical < _HOPELESS * best.typical and len(other.seconds) < _MOST_BATCHES:
            best.run()
            other.run()
            if len(other.seconds) >= _FEWEST_BATCHES and sum(other.seconds) > enough:
                break
        for one in (best, other):
            measured[f"trial_images_per_second/{one.model.name}"] = batch(0).shape[0] / one.typical
        if leads(other.typical, best.typical):
            best = other
    if measured:
        measured["trial_seconds"] = time.perf_counter() - started - sum(best.seconds)
    return Trial(best.model, best.outputs, sum(best.seconds), measured)


class _Timed:
    """A runtime whose batches are timed, and whose outputs are kept."""

    def __init__(self, model: Runtime, batch: Callable[[int], Tensor]) -> None:
        self.model = model
        self._batch = batch
        self.outputs: list[dict[str, Tensor]] = []
        self.seconds: list[float] = []

    @property
    def typical(self) -> float:
        """The median of the seconds for a batch, without the first one."""
        return statistics.median(self.seconds[1:] or self.seconds)

    def run(self) -> None:
        """Computes the next batch."""
        images = self._batch(len(self.outputs))
        begin = time.perf_counter()
        with torch.inference_mode():
            outputs = {name: tensor.clone() for name, tensor in self.model(images).items()}
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        self.seconds.append(time.perf_counter() - begin)
        self.outputs.append(outputs)


class AheadOfTheLoop(nn.Module):
    """A runtime that has computed the first batches already: so many calls return what it found of them."""

    def __init__(self, model: Runtime, outputs: Sequence[dict[str, Tensor]]) -> None:
        super().__init__()
        self.model = model
        self._outputs = list(reversed(outputs))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the features of images [B, 3, H, W] uint8, which are the first batches' to begin with."""
        if self._outputs:
            return self._outputs.pop()
        computed: dict[str, Tensor] = self.model(images)
        return computed
