"""The sizes of the check: on a card, and on the CPU, where it is tried."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple


class Way(NamedTuple):
    """A way of computing embeddings."""

    runtime: str
    precision: str
    decoder: str

    @property
    def name(self) -> str:
        """The way in words."""
        return f"{self.runtime}, {self.precision}, decoder {self.decoder}"


class Bench(NamedTuple):
    """What one end-to-end rate is measured of."""

    backbone: str
    precision: str
    decoder: str
    runtime: str = "auto"

    @property
    def name(self) -> str:
        """It in words."""
        return f"{self.backbone}, {self.precision}, decoder {self.decoder}, runtime {self.runtime}"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much of everything is computed, and where."""

    device: str
    """The device, by embedx's name."""
    backbone: str
    """The backbone of all that is no bench."""
    precision: str
    """Its precision, unless a step is about precisions."""
    drawn: int
    """The number of JPEGs that are drawn."""
    copies: int
    """The number of names that each gets, in the folder of the benches."""
    few: int
    """The number of JPEGs that are compared with the plain forward pass."""
    some: int
    """The number of JPEGs of runs that are killed, shared by members, or done by hand."""
    small_batch: int
    """The batch size of such runs."""
    shard_size: str
    """Their `--shard-size`, which makes many units."""
    ways: tuple[Way, ...]
    """The ways whose rows are compared with those of the plain forward pass."""
    at_once: int
    """How many of them are computed at the same time."""
    batch_size: int
    """The batch size of the benches."""
    batch_sizes: tuple[str, ...]
    """The batch sizes whose rates are compared."""
    benches: tuple[Bench, ...]
    """What end-to-end rates are measured of, the most telling first."""
    feature_rows: int
    """The number of rows of which the loop's own cost is measured."""
    is_card: bool = True
    """False where the check itself is tried, on a CPU."""


CARD = Sizes(
    device="cuda:0",
    backbone="resnet50",
    precision="bf16",
    drawn=512,
    copies=104,
    few=64,
    some=8192,
    small_batch=64,
    shard_size="2MiB",
    ways=tuple(
        Way(runtime, precision, decoder)
        for runtime in ("eager", "compile")
        for precision in ("fp32", "tf32", "bf16")
        for decoder in ("cpu", "cuda")
    ),
    at_once=4,
    batch_size=256,
    batch_sizes=("auto", "32", "128", "512"),
    benches=(
        Bench("resnet50", "bf16", "cpu"),
        Bench("vit_b_16", "bf16", "cpu"),
        Bench("mobilenet_v3_small", "bf16", "cpu"),
        Bench("resnet50", "bf16", "cuda"),
        Bench("resnet50", "tf32", "cpu"),
        Bench("vit_b_16", "tf32", "cpu"),
        Bench("mobilenet_v3_small", "tf32", "cpu"),
        Bench("mobilenet_v3_small", "bf16", "cuda"),
        Bench("vit_b_16", "bf16", "cuda"),
        Bench("resnet50", "bf16", "cpu", "compile"),
        Bench("resnet50", "tf32", "cuda"),
        Bench("vit_b_16", "tf32", "cuda"),
        Bench("mobilenet_v3_small", "tf32", "cuda"),
    ),
    feature_rows=200_000,
)
"""The check on one card with 16 cores, whose workers decode up to 16,640 images ahead: a third of the names is more."""

CPU = Sizes(
    device="cpu",
    backbone="shufflenet_v2_x0_5",
    precision="fp32",
    drawn=96,
    copies=4,
    few=16,
    some=128,
    small_batch=8,
    shard_size="32KiB",
    ways=(Way("eager", "fp32", "cpu"), Way("eager", "bf16", "cpu"), Way("compile", "fp32", "cpu")),
    at_once=1,
    batch_size=8,
    batch_sizes=("auto", "8"),
    benches=(Bench("shufflenet_v2_x0_5", "fp32", "cpu"),),
    feature_rows=20_000,
    is_card=False,
)
"""The same on a CPU, in a few minutes on two cores."""
