"""The terms in which a kind of source describes itself: its options, its suffixes, its target columns.

To add a kind of source: write a module in this folder that ends in `KIND = SourceKind(…)`, and add that to the list of
kinds in `embedx/data/sources/__init__.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Self

import pyarrow as pa

from embedx.config import ExtractConfig
from embedx.data.sources.base import Reader, Source
from embedx.errors import ConfigError
from embedx.names import NO_BACKBONE

Content = Literal["images", "features"]

SUFFIXES: dict[Content, frozenset[str]] = {
    "images": frozenset(
        {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"}
        | {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".tga"}
    ),
    "features": frozenset({".npy", ".safetensors"}),
}
"""The suffixes of files, in lower case, by the content of the files."""

TARGET_COLUMNS = ("target", "label")
"""The columns that are tried for the target, in this order, where `--target-column` names none."""


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """The settings of an extraction that say how sources are read; all but `content` are fields of ExtractConfig."""

    path_column: str | None = None
    key_column: str | None = None
    target_column: str | None = None
    split_column: str | None = None
    root: str | None = None
    null: bool = False
    content: Content = "images"
    """The content of the inputs: images for a backbone, or features that need none."""

    @classmethod
    def of(cls, config: ExtractConfig) -> Self:
        """Takes the options from the settings of an extraction."""
        names = {field.name for field in dataclasses.fields(cls)} - {"content"}
        content: Content = "features" if config.backbone == NO_BACKBONE else "images"
        return cls(**{name: getattr(config, name) for name in names}, content=content)

    @property
    def suffixes(self) -> frozenset[str]:
        """The suffixes of the files that are inputs."""
        return SUFFIXES[self.content]


class SourceKind(NamedTuple):
    """One kind of source, as `parse_data` uses it."""

    matches: Callable[[str], bool]
    """Tells whether a location, the part of `--data` behind `[NAME=]`, is of this kind."""
    open: Callable[[str | None, str, SourceOptions], Mapping[str, Source]]
    """Opens a location, given the name of its split (or None) and the options, as one source per split.

    Raises a ConfigError that says what to do if the location can't be opened."""
    plural: str = ""
    """The name of several sources of this kind in messages; needed where `options` is not empty."""
    options: frozenset[str] = frozenset()
    """The fields of SourceOptions that only this kind reads; giving one without such a source is a fault."""
    once: bool = False
    """True if only one source of this kind can be read."""
    reader: Callable[[str, SourceOptions], Reader] | None = None
    """Returns the reader of inputs that lie in a file of this kind, without listing them; None for whole files.

    Raises a ConfigError if the location, as it stands in an index table, can't be read any more."""


def as_target(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Returns class names as strings and numbers as int64, or None for a column of any other type."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column.cast(pa.string())
    if pa.types.is_integer(kind) or pa.types.is_null(kind):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:  # beyond 63 bits
            return None
    return None


def target_column(location: str, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns the target column of this name as `as_target` does.

    Raises:
        ConfigError: If the column is of another type.
    """
    if (target := as_target(column)) is None:
        raise ConfigError(
            f"--data {location}: --target-column {name!r} is {column.type}; give one of class names or whole numbers"
        )
    return target
