"""The settings of a report."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from embedx.errors import ConfigError
from embedx.paths import file_faults
from embedx.settings import DEVICE, LOCAL, WHERE, Settings, setting
from embedx.vectors.pairs.duplicates_config import NEAR

MOST_POINTS = 50_000
"""The most rows that a page's map can show."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig(Settings):
    """The settings of one `embedx report`."""

    out: Path = setting(short="-o", help="HTML file to write.", **LOCAL)
    title: str | None = setting(None, help="Title of the report. Default: the name of the store's folder.")
    color: tuple[str, ...] = setting(
        (),
        metavar="COLUMN",
        help="Index column to colour the map by, besides class or group, split and outlier score; repeatable. Default: "
        "the columns that the source brought.",
    )
    map: str = setting(
        "tsne",
        metavar="tsne|umap|pca|FILE",
        help='Layout of the map. tsne needs pip install "embedx[report]", umap "embedx[umap]". FILE has places of your '
        "own: .npy [N, 2], a row per row of the store in order, or .parquet or .csv with key, x, y.",
    )
    no_images: bool = setting(
        False, help="Read and show no pictures, for data that may not leave; keys are shown.", flag="--no-images"
    )
    points: int = setting(MOST_POINTS, help="Rows on the map; of more rows, a sample of each split and class.")
    compare: int = setting(
        100_000,
        help="Rows that are compared with one another for neighbours, outliers and duplicates; of more, a sample of "
        "each split and class. The time grows with their square.",
    )
    threshold: float = setting(NEAR, short="-t", help="Smallest cosine similarity of near duplicates.")
    split: tuple[str, ...] = setting((), metavar="SPLIT", help="Split to report on; repeatable. Default: all.")
    name: str = setting("embeddings", metavar="NAME", help="Tensor to report on: embeddings, or a layer's name.")
    where: str | None = setting(None, **WHERE)
    seed: int = setting(0, help="Random seed of samples and of the map.")
    device: str = setting("auto", help="Device that compares rows.", **DEVICE)
    overwrite: bool = setting(False, help="Replace the file of --out.", flag="--overwrite")

    def validate(self) -> None:
        """Raises one ConfigError that names every fault of the settings."""
        faults = file_faults("--out", self.out, overwrite=self.overwrite)
        if not 1 <= self.points <= MOST_POINTS:
            faults.append(f"--points is {self.points}; give a number from 1 to {MOST_POINTS:,}")
        if self.compare < 1:
            faults.append(f"--compare is {self.compare}; give a number of at least 1, such as 100000")
        if not 0 < self.threshold <= 1:
            faults.append(f"--threshold is {self.threshold:g}; give a number above 0 and up to 1, such as {NEAR}")
        if not 0 <= self.seed < 2**32:
            faults.append(f"--seed is {self.seed}; give a whole number from 0 to 2^32 - 1")
        if self.map not in MAPS and Path(self.map).suffix not in MAP_SUFFIXES:
            faults.append(
                f"--map is {self.map!r}; give {', '.join(MAPS)} or a file whose name ends in {', '.join(MAP_SUFFIXES)}"
            )
        ConfigError.check(faults)


MAPS = ("tsne", "umap", "pca")
MAP_SUFFIXES = (".npy", ".parquet", ".csv")
