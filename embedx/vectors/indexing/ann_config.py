"""The settings of an approximate index."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from embedx.errors import ConfigError
from embedx.settings import DEVICE, LOCAL, Settings, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexConfig(Settings):
    """The settings of one `embedx index`."""

    split: tuple[str, ...] = setting(
        (), metavar="SPLIT", help="Split whose rows are indexed; repeatable. Default: all."
    )
    name: str = setting("embeddings", metavar="NAME", help="Tensor to index: embeddings, or a layer's name.")
    factory: str | None = setting(
        None,
        metavar="TEXT",
        help="The index in the words of faiss's index_factory, such as IVF1024,SQ8 or HNSW32. Default: by the number "
        "of rows.",
    )
    recall: float = setting(
        0.95,
        help="Share of the 10 nearest rows that a search should find; searches look at so much of the index that 1,000 "
        "rows of the store reach it.",
    )
    seed: int = setting(0, help="Random seed of the rows that the index is trained and measured with.")
    threads: int | None = setting(None, help="Number of threads of faiss. Default: the number of cores.")
    device: str | None = setting(
        None,
        help="Device of the exact search that recall is measured against. Default: CUDA, if there is one.",
        **DEVICE,
    )
    out: Path | None = setting(None, short="-o", help="Folder for the index. Default: @faiss in the store.", **LOCAL)
    overwrite: bool = setting(
        False, help="Build the index anew, also where one of this store is there.", flag="--overwrite"
    )

    def validate(self) -> None:
        """Raises one ConfigError that names every fault of the settings."""
        faults = []
        if self.factory is not None and not self.factory.strip():
            faults.append("--factory is empty; give a description such as IVF1024,Flat, or leave it out")
        if not 0 < self.recall <= 1:
            faults.append(f"--recall is {self.recall:g}; give a share above 0 and up to 1, such as 0.95")
        if not 0 <= self.seed < 2**63:
            faults.append(f"--seed is {self.seed}; give a whole number from 0 to 2^63 - 1")
        if self.threads is not None and not 1 <= self.threads <= 4096:
            faults.append(f"--threads is {self.threads}; give a whole number from 1 to 4096")
        if len(set(self.split)) < len(self.split):
            faults.append(f"--split names a split twice ({', '.join(self.split)}); give each once")
        ConfigError.check(faults)
