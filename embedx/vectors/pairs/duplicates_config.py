"""The settings of a search for duplicates."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from embedx.errors import ConfigError
from embedx.paths import file_faults
from embedx.settings import DEVICE, LOCAL, WHERE, Settings, setting

NEAR = 0.96
"""The smallest cosine similarity of near duplicates, where no other is asked for."""
Keep = Literal["first", "largest"]
SUFFIXES = (".parquet", ".csv", ".jsonl")
"""The suffixes of the files that can be written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DuplicatesConfig(Settings):
    """The settings of one `embedx duplicates`."""

    threshold: float = setting(
        NEAR,
        short="-t",
        help="Smallest cosine similarity of near duplicates. It depends on the backbone; the output shows how many "
        "rows several thresholds would find.",
    )
    between: tuple[str, str] | None = setting(
        None,
        metavar="SPLIT SPLIT",
        help="Compare the rows of these two splits with each other alone; of two stores, one split of each.",
    )
    split: tuple[str, ...] = setting((), metavar="SPLIT", help="Split to look through; repeatable. Default: all.")
    name: str = setting("embeddings", metavar="NAME", help="Tensor to compare: embeddings, or a layer's name.")
    where: str | None = setting(None, **WHERE)
    keep: Keep = setting("first", help="Row of a group to mark as kept: the first, or the one with the largest file.")
    device: str = setting("auto", help="Device that compares.", **DEVICE)
    fail_on_leak: bool = setting(
        False,
        help="Exit with 3 if two splits, or two stores, have duplicates in common.",
        flag="--fail-on-leak",
    )
    out: Path | None = setting(
        None, short="-o", help="File for all rows with duplicates: .parquet, .csv or .jsonl.", **LOCAL
    )
    overwrite: bool = setting(False, help="Replace the file of --out.", flag="--overwrite")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.between is not None:  # which a file of settings has as a list
            object.__setattr__(self, "between", tuple(self.between))

    def validate(self) -> None:
        """Raises one ConfigError that names every fault of the settings."""
        faults = []
        if not 0 < self.threshold <= 1:
            faults.append(f"--threshold is {self.threshold:g}; give a number above 0 and up to 1, such as {NEAR}")
        if self.between is not None and len(self.between) != 2:
            faults.append(f"--between has {len(self.between)} splits; give two, such as --between train val")
        if self.between is not None and self.split:
            faults.append("--between names the splits already; leave --split out")
        if self.out is not None and self.out.suffix not in SUFFIXES:
            faults.append(f"--out {self.out}: give a name that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
        elif self.out is not None:
            faults += file_faults("--out", self.out, overwrite=self.overwrite)
        ConfigError.check(faults)
