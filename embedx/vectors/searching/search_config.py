"""The settings of a search."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

from embedx.errors import ConfigError
from embedx.settings import DEVICE, LOCAL, WHERE, Settings, setting

FEW_PATHS: Final = 4
"""The number of images in files up to which no process is started to decode them, as the first takes 2 s to start."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig(Settings):
    """The settings of one `embedx search`."""

    k: int = setting(10, help="Number of neighbours of each query.", short="-k", flag="--neighbours")
    split: tuple[str, ...] = setting(
        (), metavar="SPLIT", help="Split whose rows are searched; repeatable. Default: all."
    )
    name: str = setting("embeddings", metavar="NAME", help="Tensor to compare: embeddings, or a layer's name.")
    where: str | None = setting(None, **WHERE)
    approximate: bool = setting(
        False, flag="--approximate", help="Search by the index that `embedx index` built, which may miss rows."
    )
    index: Path | None = setting(None, help="Folder of that index, if `embedx index --out` named one.", **LOCAL)
    with_self: bool = setting(False, help="List the row of --row among its own neighbours.", flag="--with-self")
    device: str | None = setting(
        None,
        help="Device to embed and compare on. Default: the recipe's to embed, and CUDA to compare, if there is one.",
        **DEVICE,
    )

    def validate(self) -> None:
        """Raises one ConfigError that names every fault of the settings."""
        faults = []
        if self.k < 1:
            faults.append(f"-k is {self.k}; give a whole number of at least 1")
        if self.approximate and self.where is not None:
            faults.append(
                "--where and --approximate don't go together: the index is of all rows; leave out one of them"
            )
        if self.index is not None and not self.approximate:
            faults.append("--index is for --approximate; give that too")
        ConfigError.check(faults)
