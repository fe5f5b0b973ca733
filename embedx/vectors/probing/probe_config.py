"""The settings of a probe."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal

from embedx.errors import ConfigError
from embedx.paths import expand_paths
from embedx.settings import LOCAL, SIZE, setting

Method = Literal["linear", "knn"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """The settings of one `embedx probe`."""

    train: str = setting("train", metavar="SPLIT", help="Split to learn from.")
    test: str = setting("val", metavar="SPLIT", help="Split to predict.")
    method: Method = setting("linear", help="Multinomial logistic regression, or a vote of the nearest neighbours.")
    name: str = setting("embeddings", metavar="NAME", help="Tensor to probe: embeddings, or a layer's name.")
    l2: float | None = setting(
        None,
        help="Strength of linear's penalty: the loss is the mean cross-entropy + L2 / 2 * the weights' squared norm. "
        "Default: the best of 100, 10, ... 1e-6 on a fifth of the train split, held out.",
    )
    k: int = setting(20, help="Number of neighbours that vote in knn.", short="-k", flag="--neighbours")
    temperature: float = setting(0.07, help="Temperature of knn: a vote weighs exp(cosine similarity / temperature).")
    seed: int = setting(0, help="Random seed of the choice of held-out rows.")
    memory: int = setting(
        1024**3,
        help="Size of a split up to which it is kept in memory; a larger one is streamed shard by shard.",
        shown="1GiB",
        **SIZE,
    )
    out: Path | None = setting(
        None, short="-o", help="Folder for linear's head, and for the checkpoints of --resume.", **LOCAL
    )
    resume: bool = setting(False, help="Go on from the checkpoint of an interrupted run in --out.", flag="--resume")

    def __post_init__(self) -> None:
        expand_paths(self)

    def validate(self) -> None:
        """Raises one ConfigError that names every fault of the settings."""
        faults = []
        if self.train == self.test:
            faults.append(
                f"--train and --test are both {self.train!r}; give two splits, as rows seen in training prove nothing"
            )
        if self.l2 is not None and not 0 < self.l2 < math.inf:
            faults.append(f"--l2 is {self.l2:g}; give a number above 0, such as 1e-3")
        if not 0 <= self.seed < 2**63:
            faults.append(f"--seed is {self.seed}; give a whole number from 0 to 2^63 - 1")
        if self.k < 1:
            faults.append(f"-k is {self.k}; give a whole number of at least 1")
        if not 0 < self.temperature < math.inf:
            faults.append(f"--temperature is {self.temperature:g}; give a number above 0, such as 0.07")
        if self.method == "knn" and (self.out is not None or self.resume):
            faults.append("--out and --resume are for the head of --method linear, and knn has no head; leave them out")
        elif self.resume and self.out is None:
            faults.append("--resume goes on from a checkpoint in --out; give --out too")
        ConfigError.check(faults)
