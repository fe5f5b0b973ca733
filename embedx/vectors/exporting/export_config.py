"""The settings of an export."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final, Literal

from embedx.errors import ConfigError
from embedx.names import EMBEDDINGS
from embedx.paths import output_faults
from embedx.settings import LOCAL, WHERE, Settings, setting

FormatName = Literal["parquet", "npy", "csv", "faiss", "hf", "lance", "tensorboard", "usearch", "webdataset"]
ExportDtype = Literal["float32", "float16"]
ListKind = Literal["fixed", "variable"]

_FLOAT32_ALONE: Final = ("csv", "faiss", "tensorboard")
"""The formats that have no numbers in float16."""
_WITH_LISTS: Final = ("parquet", "hf")
"""The formats that have lists of both kinds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig(Settings):
    """The settings of one `embedx export`."""

    to: FormatName = setting("parquet", help="Format of the files.")
    out: Path = setting(short="-o", help="Folder to write, which must not exist yet, or be empty.", **LOCAL)
    split: tuple[str, ...] = setting((), metavar="SPLIT", help="Split to export; repeatable. Default: all.")
    name: str = setting(EMBEDDINGS, metavar="NAME", help="Tensor to export: embeddings, or a layer's name.")
    where: str | None = setting(None, **WHERE)
    columns: tuple[str, ...] = setting(
        (),
        metavar="COLUMN",
        help="Column of the index to export beside split and key; repeatable. Default: all that describe the inputs.",
    )
    dtype: ExportDtype | None = setting(None, help="Number format of the vectors. Default: the store's.")
    normalize: bool = setting(
        False,
        flag="--normalize",
        help="Scale each vector to unit L2 length; one of zeros, or not finite, becomes zeros.",
    )
    list: ListKind = setting("fixed", help="Type of Parquet's column of vectors: lists of one fixed size, or of any.")
    overwrite: bool = setting(False, flag="--overwrite", help="Replace an export in --out, and nothing but an export.")

    def validate(self) -> None:
        """Raises one ConfigError that names every fault of the settings."""
        faults = output_faults(self.out)
        if self.dtype == "float16" and not self.has_float16:
            faults.append(f"--dtype float16: --to {self.to} has no such numbers; leave it out")
        if self.list != "fixed" and self.to not in _WITH_LISTS:
            faults.append(f"--list {self.list} is for --to {' and '.join(_WITH_LISTS)}; leave it out")
        ConfigError.check(faults)

    @property
    def has_float16(self) -> bool:
        """True if the format has numbers in float16."""
        return self.to not in _FLOAT32_ALONE
