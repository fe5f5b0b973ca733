"""What a probe is asked to do."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal

from embedx.config import setting
from embedx.errors import ConfigError
from embedx.values import parse_size

Method = Literal["linear", "knn"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """What one `embedx probe` is asked to do."""

    train: str = setting("train", help="The split that is learned from.")
    test: str = setting("val", help="The split that is predicted.")
    method: Method = setting("linear", help="A multinomial logistic regression, or the nearest neighbours' vote.")
    name: str = setting("embeddings", help="Which tensor: embeddings, or a layer's name.")
    l2: float | None = setting(
        None,
        help="Of linear: the loss is the mean cross-entropy + L2 / 2 * the weights' squared norm. Default: the best "
        "of 100, 10, ... 1e-6 on a fifth of the train split, held out.",
    )
    k: int = setting(20, help="Of knn: how many neighbours vote.", short="-k", flag="--neighbours")
    temperature: float = setting(0.07, help="Of knn: a vote weighs exp(cosine similarity / temperature).")
    seed: int = setting(0, help="Of the choice of the rows that are held out.")
    memory: int = setting(
        1024**3,
        help="A split's embeddings are kept in memory up to this size, and else streamed shard by shard.",
        parser=parse_size,
        metavar="SIZE",
        shown="1GiB",
    )
    out: Path | None = setting(None, help="Of linear: a folder for the head, and for what --resume goes on from.")
    resume: bool = setting(False, help="Go on from what an interrupted run has left in --out.", flag="--resume")

    def faults(self) -> list[str]:
        """Everything wrong with the settings themselves, one message each; empty if nothing is."""
        faults = []
        if self.train == self.test:
            faults.append(
                f"--train and --test are both {self.train!r}; what was learned from tells nothing, give two splits"
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
            faults.append("--out and --resume are for the head of --method linear; knn has nothing to save")
        elif self.resume and self.out is None:
            faults.append("--resume goes on from what is in --out; give that too")
        return faults

    def validate(self) -> None:
        """Raises one ConfigError naming every fault of the settings."""
        ConfigError.check(self.faults())
